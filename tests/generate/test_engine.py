"""The engine on real files: encoding in slices, batches, cached prefixes and media, compilations, scores."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from omnivinci_jax.errors import MediaError, UserError
from omnivinci_jax.generate.assistant import conversation_of
from omnivinci_jax.generate.media import encode_row, encode_slices
from omnivinci_jax.generate.scheduler import MIN_CAPACITY, capacity_for
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Media
from omnivinci_jax.sequence.slices import tile_counts
from tests.generate.conftest import tiny_assistant

NEW = dict(max_new_tokens=12)
WHOLE = Capacity(rows=1, slots=512, tiles=48, windows=8, clips=4)


def full_logits(assistant, question, answer: list[int]) -> np.ndarray:
    """Computes the logits of the answer's tokens in one pass of the whole model, without cache or slices."""
    model, params, processor = assistant
    conversation = conversation_of(question)
    sizes, tiles, windows = processor.load(conversation)
    row = processor.lay_out(conversation, sizes, generate=True)
    start, end = len(row), len(row) + len(answer)
    group = assemble([PackedRow(0, 1, row, tiles, windows)], model.config, WHOLE)
    group.tokens[0, start:end] = answer
    group.segment_ids[0, :end] = 1
    group.positions[0] = np.arange(WHOLE.slots)
    logits = full_pass(model)(params, jax.tree.map(lambda x: x[None], group))
    return np.asarray(logits[start - 1 : end - 1])


@cache
def full_pass(model: OmniVinci) -> Callable:
    """Logits of all slots of one row."""

    @jax.jit
    def logits(params, batch):
        hidden = model.apply({"params": params}, batch).hidden[0, 0]
        return model.apply({"params": params}, hidden, method=model.logits)

    return logits


@pytest.fixture(scope="module")
def questions(clips, av_world) -> list:
    image, sound = sorted((av_world / "images").iterdir())[0], sorted((av_world / "sounds").iterdir())[0]
    return [
        [clips[0], "What happens?"],
        "Hello",
        [image, "What is this?"],
        [sound, clips[1], "And this? " * 30],
        ["Which sound?", Media("sound", str(clips[2]))],
    ]


@pytest.fixture(scope="module")
def alone(assistant, questions) -> list:
    return [assistant.generate(question, **NEW) for question in questions]


def test_answers_match_full_passes(assistant, questions, alone):
    for question, answer in zip(questions, alone, strict=True):
        tokens = list(answer.tokens)
        logits = full_logits(assistant, question, tokens)
        assert logits.argmax(axis=-1).tolist() == tokens
    assert len({answer.tokens for answer in alone}) == len(questions)


def test_small_pieces_encode_the_same(assistant, clips):
    model, params, processor = assistant
    conversation = conversation_of([clips[0]])
    sizes, tiles, windows = processor.load(conversation)
    row = processor.lay_out(conversation, sizes, generate=True)
    whole = encode_row(model, params, row, tiles, windows)
    pieces = encode_slices(model, params, row, tiles, windows, small=True)
    yielded = 0
    while True:
        try:
            next(pieces)
            yielded += 1
        except StopIteration as end:
            np.testing.assert_allclose(end.value, whole, atol=1e-3)  # of up to 10
            break
    assert yielded == -(-row.num_tiles // tile_counts(model.config)[0]) + 2 * row.num_windows


def test_batches_and_prefixes_change_nothing(assistant, questions, alone):
    expected = [answer.tokens for answer in alone]
    assert [answer.tokens for answer in assistant.generate_batch(questions, **NEW)] == expected
    assert [assistant.generate(question, **NEW).tokens for question in reversed(questions)] == expected[::-1]


def test_seeds_do_not_depend_on_neighbours(assistant, questions):
    drawn = dict(temperature=1.5, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=3, **NEW)
    single = [assistant.generate(question, **drawn).tokens for question in questions]
    assert [answer.tokens for answer in assistant.generate_batch(questions, **drawn)] == single
    samples = assistant.sample(questions[0], 5, **drawn)
    assert samples[0].tokens == single[0] and len({sample.tokens for sample in samples}) > 1
    assert assistant.sample(questions[0], 3, **drawn)[2].tokens == samples[2].tokens


def test_the_next_turn_continues_from_the_cache(assistant, clips, monkeypatch):
    question = {
        "role": "user",
        "content": [{"type": "video", "video": str(clips[3])}, {"type": "text", "text": "One?"}],
    }
    first = assistant.generate([question], **NEW)
    turns = [question, {"role": "assistant", "content": first.text or "x"}, {"role": "user", "content": "Two?"}]
    pieces = []
    prefill = assistant.engine._prefill
    monkeypatch.setattr(assistant.engine, "_prefill", lambda *args: pieces.append(args[0][0]) or prefill(*args))
    second = assistant.generate(turns, **NEW)
    assert pieces[0].start >= first.prompt_tokens
    assert second.tokens == tiny_assistant().generate(turns, **NEW).tokens


@pytest.mark.parametrize("length", [1, 3, 4, 8, 9])
def test_row_content_matches_the_cache(assistant, length, monkeypatch):
    tokens = assistant.generate("Hello", max_new_tokens=12).tokens
    assert len(set(tokens[:9])) == 9
    monkeypatch.setattr(assistant.processor.tokenizer, "eos_id", tokens[length - 1])
    answer = assistant.generate("Hello", max_new_tokens=12)
    assert answer.finish == "end" and answer.tokens == tokens[: length - 1]
    (row,), state = assistant.engine.scheduler.rows, assistant.engine._state
    assert len(row.content) == int(state.lengths[0]) == answer.prompt_tokens + length - 1


def test_media_are_cached_by_content(assistant, clips, tmp_path, monkeypatch):
    assistant.generate([clips[4], "One?"], **NEW)
    copy = shutil.copy(clips[4], tmp_path / "copy.webm")
    monkeypatch.setattr(type(assistant.processor), "load_item", None)  # not called again
    assistant.generate([Media("video", str(copy)), "Another?"], **NEW)


def test_a_cache_grows_with_its_conversation(assistant):
    long = "and so on " * 180
    first = assistant.generate(long, **NEW)
    assert MIN_CAPACITY * 0.6 < first.prompt_tokens < MIN_CAPACITY
    again = assistant.generate([{"role": "user", "content": long + long}], **NEW)
    assert again.prompt_tokens > MIN_CAPACITY
    assert again.tokens == tiny_assistant().generate(long + long, **NEW).tokens


def test_scores_are_log_probabilities(assistant, clips):
    question, answers = [clips[0], "Which colour?"], ["red", "a very long answer that is none " * 6, "blue"]
    end = assistant.processor.tokenizer.eos_id
    for answer, score in zip(answers, assistant.score(question, answers), strict=True):
        tokens = [*assistant.processor.tokenizer.encode(answer), end]
        logits = log_softmax(full_logits(assistant, question, tokens), axis=-1)
        assert score == pytest.approx(logits[np.arange(len(tokens)), tokens].sum(), abs=1e-3)


def test_stop_texts_and_streams(assistant, questions):
    whole = assistant.generate(questions[0], max_new_tokens=40)
    assert whole.finish == "length" and len(whole.tokens) == 40
    stream = assistant.stream(questions[0], max_new_tokens=40)
    assert "".join(piece.text for piece in stream) == whole.text == stream.answers[0].text
    stop = whole.text[len(whole.text) // 2 :][:4]
    cut = assistant.generate(questions[0], max_new_tokens=40, stop=(stop,))
    assert cut.finish == "stop" and cut.text == whole.text[: whole.text.find(stop)]
    assert len(cut.tokens) <= len(whole.tokens)
    stream = assistant.stream(questions[0], max_new_tokens=40)
    first = next(iter(stream))
    assert whole.text.startswith(first.text) and stream.answers[0].finish is None  # interrupted, as by Ctrl-C
    assert assistant.generate(questions[0], max_new_tokens=40).text == whole.text


def test_too_long_prompts_and_broken_files(assistant, clips, tmp_path):
    with pytest.raises(UserError, match=r"takes \d+ positions \(0 of media, \d+ of text\).*reads 4096: at most 4084"):
        assistant.generate("word " * 9000, **NEW)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    results = assistant.generate_batch([[clips[0], "One?"], [Media("video", str(broken)), "Two?"], "Three?"], **NEW)
    assert isinstance(results[1], MediaError) and str(results[1]).startswith(str(broken))
    assert [results[0].tokens, results[2].tokens] == [
        assistant.generate(question, **NEW).tokens for question in ([clips[0], "One?"], "Three?")
    ]


def test_few_compilations(clips, av_world):
    """50 prompts with text and any number of images, sounds and videos, in three cache lengths."""
    assistant, rng = tiny_assistant(), np.random.default_rng(0)
    images, sounds = (sorted((av_world / folder).iterdir()) for folder in ("images", "sounds"))
    assistant.engine  # noqa: B018 (it unpacks the parameters)
    compiled, new = [], {}

    def count(event: str, _seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for number in range(50):
            media = [rng.choice(paths) for paths in (clips, images, sounds) for _ in range(rng.integers(0, 3))]
            words = int(rng.choice([3, 60, 350]))
            before = len(compiled)
            answer = assistant.generate([*map(Path, media), "word " * words], temperature=0.5 * (number % 3), **NEW)
            new.setdefault(capacity_for(answer.prompt_tokens + NEW["max_new_tokens"]), []).append(
                len(compiled) - before
            )
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) <= 12 and len(new) > 1, new
    assert not any(sum(counts[len(counts) // 2 :]) for counts in new.values()), new
