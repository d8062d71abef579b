"""`omnivinci_jax.load`: a model that answers questions."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from omnivinci_jax import model_dir
from omnivinci_jax.generate.answers import Answer, Stream
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Prompt, Sampling
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.chat import Conversation, Media, Message, valid_text
from omnivinci_jax.sequence.forms import parse_conversation

Question = str | Path | Media | Sequence[str | Path | Media] | Sequence[dict[str, Any]] | Conversation


class Assistant(model_dir.LoadedModel):
    """A loaded model (module, parameters, processor) that answers questions about text, images, sound and video.

        model = omnivinci_jax.load("runs/tiny/model")
        answer = model.generate([Path("a.mp4"), "What happens?"])
        print(answer.text)
        model.generate([Path("a.mp4"), "And then?"])                       # reuses the prefix that both prompts share
        model.generate([omnivinci_jax.Media("sound", "a.mp4"), "Who speaks?"], temperature=0.7, top_p=0.9, seed=1)
        model.generate([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}, ...])
        for piece in model.stream([Path("a.mp4"), "What happens?"], stop=("\\n",)):
            print(piece.text, end="", flush=True)
        model.sample("Tell me a story", 4, temperature=1.0)                # four answers from one prefill
        model.score([Path("a.mp4"), "Which colour?"], ["red", "blue"])     # log-probabilities

    A question is a text; a sequence of texts and media in order, where the content of a Path decides whether it is an
    image, a sound or a video; a conversation in the Hugging Face chat form; or a Conversation. Keyword arguments are
    the fields of Sampling (generate/request.py); the default is greedy. A UserError says in one line what cannot
    be read or does not fit.

    Encoded media are cached by the files' content, and so are the keys and values of the last conversations.
    """

    @cached_property
    def engine(self) -> Engine:
        """The engine, created on first use because it copies the decoder's parameters."""
        return Engine(*self, self.mesh)

    def generate(self, question: Question, **sampling: Any) -> Answer:
        """Answers one question."""
        (answer,) = self.sample(question, 1, **sampling)
        return answer

    def sample(self, question: Question, count: int, **sampling: Any) -> list[Answer]:
        """Returns several answers to one question, prefilled once; they differ if the temperature is above 0."""
        return _finished(self._stream([question], count, sampling))

    def generate_batch(self, questions: Sequence[Question], **sampling: Any) -> list[Answer | Exception]:
        """Answers several questions, decoded together; returns the error of a question that cannot be answered."""
        results: list[Answer | Exception | None] = []
        prompts, settings, began = [], Sampling(**sampling), time.monotonic()
        for question in questions:
            try:
                prompts.append(self._prompt(question, settings))
                results.append(None)
            except Exception as error:  # whatever one question raises leaves the others alone
                results.append(error)
        answers = iter(_finished(Stream(self.engine, prompts, settings, 1, began)) if prompts else ())
        return [result if result else next(answers) for result in results]

    def generate_all(
        self, questions: Iterable[Conversation | Exception], at_once: int, **sampling: Any
    ) -> Iterator[Answer | Exception]:
        """Yields the answer to each of any number of questions, in order, decoding `at_once` of them together.

        The questions are drawn as they are needed. In place of one that could not be read stands what reading it
        raised; it is yielded as it is, as is the error of a question that cannot be answered.
        """
        questions = iter(questions)
        while asked := list(islice(questions, at_once)):
            answers = iter(self.generate_batch([q for q in asked if isinstance(q, Conversation)], **sampling))
            for question in asked:
                yield next(answers) if isinstance(question, Conversation) else question

    def stream(self, question: Question, **sampling: Any) -> Stream:
        """Streams the answer to one question as pieces of text; `stream.answers` has the complete answer."""
        return self._stream([question], 1, sampling)

    def score(self, question: Question, answers: Sequence[str]) -> list[float]:
        """Returns each answer's log-probability, end token included; the largest is the model's choice."""
        tokenizer = self.processor.tokenizer
        prompt = self.engine.prompt(conversation_of(question))
        tokens = [[*tokenizer.encode(valid_text(answer)), tokenizer.eos_id] for answer in answers]
        return [float(scores.sum()) for scores in self.engine.score(prompt, tokens)]

    def _stream(self, questions: list[Question], count: int, sampling: dict[str, Any]) -> Stream:
        began, settings = time.monotonic(), Sampling(**sampling)
        return Stream(self.engine, [self._prompt(item, settings) for item in questions], settings, count, began)

    def _prompt(self, question: Question, sampling: Sampling) -> Prompt:
        prompt = self.engine.prompt(conversation_of(question))
        self.engine.check_length(prompt, sampling.max_new_tokens)
        return prompt


def load(folder: str | AnyPath, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None) -> Assistant:
    """Loads a model directory; see model_dir.load for arguments and errors, and Assistant for its methods."""
    return Assistant(*model_dir.load(folder, dtype, mesh))


def conversation_of(question: Question) -> Conversation:
    """Converts a question to a conversation. Raises UserError if it is neither text nor media nor a conversation."""
    if isinstance(question, Conversation):
        return question
    items: list[Any] = [question] if isinstance(question, str | Path | Media) else list(question)
    if items and isinstance(items[0], dict):
        return parse_conversation({"messages": items}, "prompt", Path())
    return Conversation((Message("user", tuple(map(_item, items))),))


def _item(item: str | Path | Media) -> str | Media:
    if isinstance(item, Path):
        return Media(media_kind(item), str(item))
    return item if isinstance(item, Media) else valid_text(item)


def _finished(stream: Stream) -> list[Answer]:
    for _ in stream:
        pass
    return stream.answers
