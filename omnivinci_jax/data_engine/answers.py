"""Forms of structured answers, and reading them from what a model wrote."""

import json
import re
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from omnivinci_jax.data.questions import Question, without_letters
from omnivinci_jax.errors import UserError

Form = TypeVar("Form", bound=BaseModel)

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


class AnswerError(UserError):
    """An answer that is not what was asked for."""


class Corrected(BaseModel):
    """The captions of a segment's clips after correction, in order, and their joint caption."""

    vision: list[str]
    audio: list[str]
    caption: str = Field(min_length=1)


class AskedQuestion(BaseModel):
    """A question with its reasoning; `answer` is one of the options, or free text if there are none."""

    question: str = Field(min_length=1)
    options: list[str] = []
    answer: str = Field(min_length=1)
    reasoning: str = Field(min_length=1)
    kind: str = Field(min_length=1)

    @property
    def texts(self) -> list[str]:
        """The options without their letters."""
        return without_letters(self.options)

    @property
    def right(self) -> int | None:
        """Index of the right option; None if the answer is none of them."""
        return Question("", tuple(self.texts)).option(self.answer)


class AskedQuestions(BaseModel):
    """All questions about a segment."""

    questions: list[AskedQuestion] = Field(min_length=1)


def read_answer(form: type[Form], text: str) -> Form:
    """Reads an answer as JSON, alone or in a code fence or between other words; raises AnswerError."""
    text = _THOUGHTS.sub("", text)
    if fenced := _FENCE.search(text):
        text = fenced[1]
    start = text.find("{")
    if start < 0:
        raise AnswerError("the answer has no JSON object")
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
        return form.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AnswerError(f"the answer's JSON is not in the form asked for: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"the answer is not JSON, or only a part of it: {error}") from None
