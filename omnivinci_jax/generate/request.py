"""Requests to the engine: a prompt, its sampling parameters, and the answer so far. Does not import jax."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int32, Int64

from omnivinci_jax.errors import check_values
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION
from omnivinci_jax.sequence.row import Row

MEDIA = -1  # the token id of a media slot


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of an answer; the default is greedy.

    temperature: 0 takes the most likely token; 1 samples from the model's probabilities.
    top_k: sample from the k most likely tokens; 0 from all.
    top_p: sample from the fewest tokens whose probabilities sum to at least this.
    repetition_penalty: above 1 makes tokens of the prompt's text and of the answer less likely.
    seed: the same seed gives the same answer, whatever else is in the batch and on any mesh.
    max_new_tokens: maximum length of an answer.
    stop: texts that end an answer and are not part of it.

    Raises ConfigError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        rules = (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 penalises nothing)"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("stop", all(self.stop), "texts that are not empty"),
        )
        check_values(self, rules)


@dataclass(frozen=True)
class Prompt:
    """A laid-out conversation as the decoder reads it.

    tokens: text ids, MEDIA at media slots.
    media: the embeddings of the media slots, in order.
    identity: a number for the content of each slot: two prompts have the same keys and values up to the first slot
        where their identities differ.
    weights_version: version of the weights that encoded the media; `Engine.update` increments it.
    vision_tokens, audio_tokens: slots of each modality; the others are text.
    """

    tokens: Int32[np.ndarray, " n"]
    media: Float[np.ndarray, "m D"]
    identity: Int64[np.ndarray, " n"]
    weights_version: int = 0
    vision_tokens: int = 0
    audio_tokens: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def make_prompt(
    row: Row, media: Float[np.ndarray, "m D"], media_ids: Int64[np.ndarray, " m"], weights_version: int = 0
) -> Prompt:
    """Makes a Prompt from a row, its media embeddings and a number that identifies the content of each."""
    is_text = row.slot_kind == TEXT
    identity = row.tokens.astype(np.int64)
    identity[~is_text] = -1 - media_ids
    tokens = np.where(is_text, row.tokens, MEDIA).astype(np.int32)
    vision, audio = int((row.slot_kind >= VISION).sum()), int((row.slot_kind == AUDIO).sum())
    return Prompt(tokens, media, identity, weights_version, vision, audio)


@dataclass(eq=False)
class Request:
    """One answer to one prompt; the engine fills it in.

    sample: index among several answers to the same prompt; with the seed, it determines the random numbers.
    prefill_only: the prompt is prefilled but not answered, until the request is cancelled.
    tokens: the answer so far, its end token included.
    logprobs: log-probability of each token under the model itself (temperature 1, no penalty, all tokens).
    finish: what ended it: the end token, `max_new_tokens` or `Engine.cancel`; None while it runs.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    sample: int = 0
    prefill_only: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["end", "length", "cancelled"] | None = None

    @property
    def slots(self) -> int:
        """Maximum number of slots that the request takes."""
        return len(self.prompt) + self.sampling.max_new_tokens
