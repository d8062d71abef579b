"""The questions of a data file, with the answers to compare with."""

from typing import Any, NamedTuple

from omnivinci_jax.data.questions import read_question
from omnivinci_jax.data.records import Entry, Records
from omnivinci_jax.errors import DataError
from omnivinci_jax.evaluation.accuracy import kind_of
from omnivinci_jax.evaluation.metrics import Reference
from omnivinci_jax.sequence.chat import Conversation, Message, valid_text
from omnivinci_jax.sequence.references import media_file, shown


class Sample(NamedTuple):
    """A question.

    conversation: up to the answer. record: as the file has it. kind: of question. where: file and line.
    """

    conversation: Conversation
    reference: Reference
    record: dict[str, Any]
    kind: str
    where: str


def read_sample(records: Records, entry: Entry) -> Sample:
    """Reads a question: a conversation, or a record of MMAR or MMAU (`question`, `choices` and a sound).

    The right answer is the record's `answer` or `solution`, one of its `answers`, or else the last message.

    Raises:
        DataError: there is no question or no right answer; the message starts with file:line.
    """
    record, where = records.record(entry), f"{records.path}:{entry.line}"
    if isinstance(record.get("question"), str) and "choices" in record and "messages" not in record:
        conversation = _audio_question(record, where, records)
    else:
        conversation = records.conversation(entry)
    return Sample(conversation.unanswered, _reference(record, conversation), record, kind_of(record), where)


def _reference(record: dict[str, Any], conversation: Conversation) -> Reference:
    where, last = conversation.where, conversation.messages[-1]
    if people := record.get("answers"):
        listed = people if isinstance(people, list) else [None]
        given = [item.get("answer") if isinstance(item, dict) else item for item in listed]  # VQA's are objects
        answers = tuple(answer for answer in given if isinstance(answer, str) and answer.strip())
        if len(answers) < len(given):
            raise DataError(f"{where}: 'answers' must be a list of texts, none of them empty: {shown(people)}")
        return Reference(answers)
    question: dict[str, Any] = {key: record[key] for key in ("answer", "solution") if key in record}
    if not question and last.role == "assistant":
        question["answer"] = "".join(item for item in last.content if isinstance(item, str))
    choices = record.get("options") or record.get("choices") or []
    return Reference((read_question({**question, "options": choices}, where).answer,), tuple(choices))


def _audio_question(record: dict[str, Any], where: str, records: Records) -> Conversation:
    """Returns the question of MMAR or MMAU, its sound first, and its choices with letters, a line each."""
    choices, sound = record["choices"], record.get("audio_path") or record.get("audio_id")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: 'choices' must be a list of texts: {shown(choices)}")
    if not isinstance(sound, str):
        raise DataError(f"{where}: names its sound neither in 'audio_path' nor in 'audio_id'")
    lines = [record["question"]]
    for index, choice in enumerate(choices):
        lines.append(choice if choice.startswith("(") else f"({chr(ord('A') + index)}) {choice}")
    item = media_file("sound", sound, where, records.path.parent)
    return Conversation((Message("user", (item, valid_text("\n".join(lines)))),), where)
