"""Rules for texts, near-duplicates, structured answers, prompts, and limits."""

import asyncio
import random
from types import SimpleNamespace

import pytest

from omnivinci_jax.data_engine import limiter, quality
from omnivinci_jax.data_engine.answers import AnswerError, AskedQuestions, Corrected, read_answer
from omnivinci_jax.data_engine.prompts import read_prompts
from omnivinci_jax.data_engine.settings import QualityConfig
from omnivinci_jax.data_engine.store import Store, Total, digest
from omnivinci_jax.errors import UserError
from tests.data_engine.answering import TEXT


def test_refusals_are_found_and_descriptions_are_not():
    for text in (
        "I'm sorry, but I can't help.",
        "I cannot see the video.",
        "As an AI, I have no ears.",
        "I’m unable to hear it",
    ):
        assert quality.is_refusal(text), text
    for text in ("A man says: I'm sorry, I can't help you.", "I can see a dog.", "Sorry, the sign says, is closed."):
        assert quality.is_refusal(text) == text.startswith("Sorry"), text


def test_texts_are_dropped_by_length_and_language():
    config = QualityConfig()
    english = "A man in a red coat walks through the rain while a dog barks behind him."
    german = "Ein Mann in einem roten Mantel geht durch den Regen, während hinter ihm ein Hund bellt."
    assert quality.text_problem(english, config, (8, 20)) is None
    assert quality.text_problem(english, config, (8, 10)) == "too long"
    assert quality.text_problem("A man.", config, (8, 20)) == "too short"
    assert quality.text_problem(german, config, (8, 20)) == "language"
    assert quality.text_problem(german, QualityConfig(language="de"), (8, 20)) is None
    assert quality.word_count("一个人走路 in rain") == 3 + 2


def question(text: str, options: list[str], answer: str = "A") -> dict:
    return {"question": text, "options": options, "answer": answer, "reasoning": "Because."}


def test_questions_are_dropped_by_rules():
    things = ["a red car", "a blue bus", "a green bike", "a black train"]
    asked = [
        question("Which thing is seen in front of the house while the bell rings?", things),
        question("Which thing is seen in front of the house when the bell rings?", things),
        question("What does the woman in the long coat say to the child?", things),
        question("Who opens the door after the music stops?", [*things[:3], "A red car"]),
        question(
            "Who closes the window before the dog barks?",
            ["the old man who came in with the dog and sat down", *things[:2]],
        ),
        question("Who sings the last song of the evening?", things[:1]),
        question("What?", things),
        question("As an AI, I cannot ask about this video.", things),
        question("What is the colour of the car that passes by?", [], "red"),
    ]
    assert quality.question_problems(asked, QualityConfig()) == [
        None, "near-duplicate question", None, "equal options", "the right option is the longest by far",
        "number of options", "too short", "refusal", None,
    ]  # fmt: skip


def test_near_duplicate_captions_are_found():
    drawn, found = random.Random(0), quality.NearDuplicates(0.8)
    captions = [" ".join(drawn.choices(TEXT.split(), k=80)) for _ in range(200)]
    assert [found.add(f"id{index}", caption) for index, caption in enumerate(captions)] == [None] * 200
    assert found.add("new", f"{captions[17]} quietly.") == "id17"
    assert found.add("new", captions[18].upper()) == "id18"
    words = captions[19].split()
    assert found.add("half", " ".join(words[:40] + drawn.choices(TEXT.split(), k=40))) is None


def test_structured_answers_are_read_from_what_models_write():
    corrected = '{"vision": ["a"], "audio": ["b"], "caption": "c"}'
    for text in (corrected, f"Sure!\n```json\n{corrected}\n```", f"<think>{{}}</think>{corrected} I hope it helps."):
        assert read_answer(Corrected, text) == Corrected(vision=["a"], audio=["b"], caption="c")
    for text, message in (
        ("no", "has no JSON object"), (corrected[:-5], "only a part of it"),
        ('{"vision": []}', "audio: Field required"),
        ("[" * 9 + "{" * 100_000, "not JSON"),
    ):  # fmt: skip
        with pytest.raises(AnswerError, match=message):
            read_answer(Corrected, text)
    with pytest.raises(AnswerError, match=r"questions\.0\.answer"):
        read_answer(AskedQuestions, '{"questions": [{"question": "a", "answer": "", "reasoning": "b", "kind": "c"}]}')


def test_prompts_of_ones_own_are_checked(tmp_path):
    package = read_prompts()
    assert package["judge"].version == "1" and "$question" not in package["judge"].fill(question="?", evidence="!")
    for name, text, message in (
        ("judge", "Answer: $question", "the first line must be its version"),
        (
            "judge",
            "version: 2\nAnswer: $question",
            r"\$evidence is unknown or missing; this prompt has \$evidence, \$question",
        ),
        ("audio_caption", "version: 2\nFor $5: $seconds", "begins no name"),
        ("describe", "version: 2\nDescribe $seconds", "has no"),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
        with pytest.raises(UserError, match=rf"{name}\.txt: .*{message}"):
            read_prompts(str(tmp_path))
        (tmp_path / f"{name}.txt").unlink()
    (tmp_path / "judge.txt").write_text("version: 2b\nAnswer: $question $evidence")
    mine = read_prompts(str(tmp_path))
    assert mine["judge"].version == "2b" and mine["repair"] == package["repair"]
    with pytest.raises(UserError, match="there is no such folder"):
        read_prompts(str(tmp_path / "none"))


def test_the_store_keeps_the_first_result(tmp_path):
    store, key = Store(tmp_path / "results.sqlite"), digest("a", {"b": [1, 2.5, None]})
    assert store.get(key) is None
    assert store.put(key, "vision", "one", 10, 2) == "one" and store.put(key, "vision", "two", 5, 1) == "one"
    assert store.put(digest("b"), "vision", "three", 7, 3) == "three" and store.put(digest("c"), "rows", "[]") == "[]"
    store.close()
    again = Store(tmp_path / "results.sqlite")
    assert again.get(key) == "one" and again.totals() == {"vision": Total(2, 17, 5), "rows": Total(1, 0, 0)}
    (tmp_path / "bad.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"bad\.sqlite: file is not a database"):
        Store(tmp_path / "bad.sqlite")


def test_the_limiter_spaces_requests_and_tokens(monkeypatch):
    now = 100.0  # seconds of a clock that only sleeping moves

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(limiter, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(limiter, "asyncio", SimpleNamespace(sleep=sleep))

    async def seconds(limits: limiter.Limiter, tokens: int) -> float:
        started = now
        for _ in range(3):
            await limits.wait()
            limits.used(tokens)
        return now - started

    assert asyncio.run(seconds(limiter.Limiter(600, 0), 0)) == pytest.approx(0.2)
    assert asyncio.run(seconds(limiter.Limiter(0, 60_000), 100)) == pytest.approx(0.2)
    assert asyncio.run(seconds(limiter.Limiter(0, 0), 10**9)) == 0
