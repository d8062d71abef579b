"""The stages of the data engine (Section 3.2, Figure 4): functions row → row over paths, never over media.

A row is a segment of a video as a JSON object. Each stage returns it with more fields. What a stage asks a model is
stored by the content of the request (client.py), so stages keep no state, and repeating one costs nothing.

A row with "error" (its stage and its reason) or "drop" (a reason) goes through no further stage.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from omnivinci_jax.data.questions import Question
from omnivinci_jax.data_engine import quality
from omnivinci_jax.data_engine.answers import AnswerError, AskedQuestions, Corrected
from omnivinci_jax.data_engine.client import Attachment, Model
from omnivinci_jax.data_engine.clips import frames_of, muted_video_of, sound_of
from omnivinci_jax.data_engine.prompts import Prompt
from omnivinci_jax.data_engine.settings import EngineConfig
from omnivinci_jax.data_engine.store import digest
from omnivinci_jax.speech import Voice, spoken_file

Row = dict[str, Any]

SILENT = "Nothing can be heard."

_EVIDENCE = {
    "nothing": "Answer this question about a video that you can neither see nor hear.",
    "sight": "Answer this question about the video, which you see without its sound.",
    "sound": "Answer this question about a video of which you hear the sound alone.",
}


@dataclass(frozen=True)
class Tools:
    """What the stages use. `out` is the folder of results; `models` are by role."""

    config: EngineConfig
    prompts: dict[str, Prompt]
    models: dict[str, Model]
    out: Path
    voice: Voice | None = None

    def repair(self, answer: str, problem: str) -> str:
        """Returns the text that asks for an answer again."""
        return self.prompts["repair"].fill(answer=answer, problem=problem)


Stage = Callable[[Row, Tools], Awaitable[Row]]


async def vision_caption(row: Row, tools: Tools) -> Row:
    """Captions each clip of a segment from sight alone."""

    async def caption(clip: list[float]) -> str:
        prompt = tools.prompts["vision_caption"].fill(seconds=_seconds(clip))
        return await tools.models["vision"].ask([_sight(row, clip, tools.config), prompt])

    return row | {"vision": await asyncio.gather(*map(caption, row["clips"]))}


async def audio_caption(row: Row, tools: Tools) -> Row:
    """Captions each clip from sound alone. A silent clip is not asked about: models make up sounds for it."""

    async def caption(clip: list[float]) -> str:
        if _is_silent(row, clip, tools.config):
            return SILENT
        prompt = tools.prompts["audio_caption"].fill(seconds=_seconds(clip))
        return await tools.models["audio"].ask([_sound(row, clip), prompt])

    return row | {"audio": await asyncio.gather(*map(caption, row["clips"]))}


async def correct(row: Row, tools: Tools) -> Row:
    """Corrects the captions against each other, and joins them into one caption of the segment."""
    captions = "\n\n".join(
        f"Clip {index}, {start:.0f} to {end:.0f} s\nSeen: {seen}\nHeard: {heard}"
        for index, ((start, end), seen, heard) in enumerate(
            zip(row["clips"], row["vision"], row["audio"], strict=True), start=1
        )
    )
    count = len(row["clips"])

    def check(corrected: Corrected) -> None:
        for name, texts in (("vision", corrected.vision), ("audio", corrected.audio)):
            if len(texts) != count:
                raise AnswerError(f"{name!r} has {len(texts)} descriptions of {count} clips")

    prompt = tools.prompts["correct"].fill(captions=captions, clips=count)
    corrected = await tools.models["corrector"].ask_for(Corrected, [prompt], tools.repair, check)
    return row | {
        "corrected_vision": corrected.vision,
        "corrected_audio": corrected.audio,
        "caption": corrected.caption.strip(),
    }


async def filter_caption(row: Row, tools: Tools) -> Row:
    """Drops a segment with a refusal, or whose joint caption is in another language, too short or too long."""
    if any(map(quality.is_refusal, [*row["vision"], *row["audio"], row["caption"]])):
        return row | {"drop": "refusal"}
    reason = quality.text_problem(row["caption"], tools.config.quality, tools.config.quality.caption_words)
    return row | ({"drop": reason} if reason else {})


async def ask_questions(row: Row, tools: Tools) -> Row:
    """Asks questions with reasoning about the joint caption. The options of each are in an order of its own."""
    if not tools.config.questions:
        return row | {"questions": []}
    prompt = tools.prompts["questions"].fill(caption=row["caption"], count=tools.config.questions)

    def check(asked: AskedQuestions) -> None:
        for question in asked.questions:
            if question.options and question.right is None:
                raise AnswerError(f"the answer {question.answer!r} is none of the options {question.options}")

    asked = await tools.models["questioner"].ask_for(AskedQuestions, [prompt], tools.repair, check)
    questions = []
    for question in asked.questions[: tools.config.questions]:
        options, right = question.texts, question.right
        order = sorted(range(len(options)), key=lambda index: digest(row["id"], question.question, options[index]))
        questions.append({
            "question": question.question.strip(),
            "options": [options[index] for index in order],
            "answer": question.answer.strip() if right is None else ascii_uppercase[order.index(right)],
            "reasoning": question.reasoning.strip(),
            "kind": " ".join(question.kind.lower().split()),
        })  # fmt: skip
    return row | {"questions": questions}


async def filter_questions(row: Row, tools: Tools) -> Row:
    """Drops questions by rules, and those that the judge answers without the media; tags what the others need.

    "needs" is sight or sound if the judge answers from that one alone, either if it answers from each of them, and both
    if it answers from neither.
    """
    reasons = quality.question_problems(row["questions"], tools.config.quality)

    async def judge(question: Row, reason: str | None) -> Row:
        if reason is None and tools.config.tries:
            nothing, sight, sound = await asyncio.gather(*(_knows(row, question, known, tools) for known in _EVIDENCE))
            if nothing:
                return question | {"drop": "answered without the media"}
            needs = {(True, True): "either", (True, False): "sight", (False, True): "sound", (False, False): "both"}
            return question | {"needs": needs[sight, sound]}
        return question | ({"drop": reason} if reason else {})

    judged = await asyncio.gather(*map(judge, row["questions"], reasons))
    return row | {"questions": judged}


async def speak(row: Row, tools: Tools) -> Row:
    """Speaks the prompts of a share of the questions; "speech" is the file, relative to the folder of results."""
    if tools.voice is None:
        return row

    async def say(question: Row) -> Row:
        chosen = int.from_bytes(digest("speech", row["id"], question["question"])[:4], "big")
        if "drop" in question or chosen >= tools.config.speech_share * 2**32:
            return question
        assert tools.voice
        path = await asyncio.to_thread(spoken_file, tools.voice, prompt_of(question), tools.out / "speech")
        return question | {"speech": path.relative_to(tools.out).as_posix()}

    return row | {"questions": await asyncio.gather(*map(say, row["questions"]))}


STAGES: tuple[Stage, ...] = (
    vision_caption, audio_caption, correct, filter_caption, ask_questions, filter_questions, speak,
)  # fmt: skip


def prompt_of(question: Row, order: list[int] | None = None) -> str:
    """Returns a question with its options, a line each; `order` is that of the options."""
    options = question["options"]
    shown = options if order is None else [options[index] for index in order]
    return "\n".join(
        [question["question"], *(f"{ascii_uppercase[index]}. {option}" for index, option in enumerate(shown))]
    )


async def _knows(row: Row, question: Row, known: str, tools: Tools) -> bool:
    """Returns whether the judge answers rightly, from what is known, in every order of the options."""
    count, media = len(question["options"]), []
    audible = [clip for clip in row["clips"] if not _is_silent(row, clip, tools.config)]
    if known == "sight":
        media = [_sight(row, clip, tools.config) for clip in row["clips"]]
    elif known == "sound" and not audible:
        return False  # it knows nothing then
    elif known == "sound":
        media = [_sound(row, clip) for clip in audible]
    for attempt in range(min(tools.config.tries, max(count, 1))):
        # Each try moves the right option to another letter.
        order = [(index + attempt) % count for index in range(count)]
        prompt = tools.prompts["judge"].fill(evidence=_EVIDENCE[known], question=prompt_of(question, order))
        answer = await tools.models["judge"].ask([*media, prompt])
        if not _is_right(answer, question, order):
            return False
    return True


def _is_right(answer: str, question: Row, order: list[int]) -> bool:
    if not question["options"]:
        return Question(question["answer"]).is_right(answer)
    right = ascii_uppercase[order.index(ascii_uppercase.index(question["answer"]))]
    return Question(right, tuple(question["options"][index] for index in order)).is_right(answer)


def _sight(row: Row, clip: list[float], config: EngineConfig) -> Attachment:
    file, identity = Path(row["file"]), _identity(row)
    if config.send == "video":
        return muted_video_of(file, identity, clip)
    return frames_of(file, identity, clip, config.frames, config.frame_side)


def _sound(row: Row, clip: list[float]) -> Attachment:
    return sound_of(Path(row["file"]), _identity(row), clip)


def _identity(row: Row) -> tuple:
    return row["sha256"], row["start"], row["end"]


def _is_silent(row: Row, clip: list[float], config: EngineConfig) -> bool:
    start, end = (row["start"] + second for second in clip)
    levels = row["levels"][int(start) : max(int(end), int(start) + 1)]
    return max(levels, default=-100) < config.silence


def _seconds(clip: list[float]) -> str:
    return f"{clip[1] - clip[0]:.0f}"
