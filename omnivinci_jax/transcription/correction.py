"""Correcting a transcript with references: ASR RAG (Appendix D.3.1 to D.3.3, Figure 16b)."""

from collections.abc import Sequence
from typing import NamedTuple

from omnivinci_jax.errors import UserError
from omnivinci_jax.evaluation.metrics import Metric, Reference
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.sequence.chat import ACCEPT, INTEGRATE, Conversation, Media, Message, valid_text
from omnivinci_jax.sequence.tokenizer import Tokenizer

CANDIDATES = 5  # of the recogniser, as in the paper


class Hypotheses(NamedTuple):
    """A sound, what the model itself hears, and what a recogniser does."""

    item: Media
    internal: str
    candidates: list[str]


_BEFORE = """Task: Perform reference-augmented correction for a given speech input.
Objective: Evaluate the quality of an internally generated hypothesis against external candidates.
First, select a generation strategy by producing a control token. Then, generate the final,
corrected text.
- If the internal hypothesis is deemed superior and well-aligned with the audio, select <accept_internal>.
- If the external candidates provide necessary corrections, select <integrate_reference>.
--
Acoustic Evidence: """
_AFTER = """
External Candidate Transcriptions:
{candidates}
Internal Hypothesis:
{internal}
--
Output:"""


def ask_correction(item: Media, internal: str, candidates: Sequence[str], where: str = "prompt") -> Conversation:
    """Returns the paper's prompt (D.3.1).

    Args:
        item: the sound.
        internal: what the model itself heard.
        candidates: what a recogniser heard; the paper has five.
        where: starts errors about it.
    """
    lines = "\n".join(f"{index}. {valid_text(text)}" for index, text in enumerate(candidates, start=1))
    after = _AFTER.format(candidates=lines, internal=valid_text(internal))
    return Conversation((Message("user", (_BEFORE, item, after)),), where)


def decide(wer: Metric, heard: Hypotheses, truth: str, threshold: float) -> str:
    """Returns the right control token (D.3.2).

    To accept is right if the word error rate of the internal hypothesis is below the threshold, or no candidate has a
    lower one.

    Raises:
        DataError: the truth has no words.
    """

    def rate(text: str) -> float:
        return wer.judge(text, Reference((truth,))).score

    own = rate(heard.internal)
    return ACCEPT if own < threshold or min(map(rate, heard.candidates)) >= own else INTEGRATE


def choose_text(answer: Answer, internal: str, tokenizer: Tokenizer) -> str:
    """Returns the final text (D.3.3): the internal hypothesis if the model accepts it, otherwise what follows.

    Raises:
        UserError: the answer begins with no control token.
    """
    first = answer.tokens[0] if answer.tokens else None
    if first is not None and first == tokenizer.token_id(ACCEPT):
        return internal
    if first is not None and first == tokenizer.token_id(INTEGRATE):
        return answer.text.strip()
    raise UserError("the model begins with no control token: train it on what `omnivinci rag-data` writes")
