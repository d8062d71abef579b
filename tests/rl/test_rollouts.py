"""Rollouts of a tiny random model, and the rows in which their answers are trained."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import ConfigError, DataError
from omnivinci_jax.generate import media as media_module
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Sampling
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.rl import rollouts as rollouts_module
from omnivinci_jax.rl.answer_rows import at_tokens, first_fit, pack_answers
from omnivinci_jax.rl.encoders import encode_prompts, encoded_media
from omnivinci_jax.rl.loss import score_tokens
from omnivinci_jax.rl.prompts import LoadedPrompt, load_prompt, open_prompts, prompt_capacity, prompt_order
from omnivinci_jax.rl.rewards import BUILT_IN, Rewards
from omnivinci_jax.rl.rollouts import rollout
from omnivinci_jax.sequence.batch import AUDIO, VISION, Capacity
from omnivinci_jax.sequence.slices import sound_slices, vision_slices
from omnivinci_jax.settings import DataConfig, GRPOConfig, RewardConfig, TrainConfig
from tests.rl.data import write_prompts
from tests.tiny import random_params, tiny_settings, tiny_tokenizer

ANSWERS, LONGEST = 4, 12
# Two prompts a group; a row holds two answers to a prompt with a clip.
CAPACITY = Capacity(rows=8, slots=420, tiles=64, windows=12, clips=4)


def settings(data: Path, **changes) -> TrainConfig:
    grpo = GRPOConfig(prompts=4, answers=ANSWERS, max_new_tokens=LONGEST, **changes)
    values = DataConfig(train=str(data), groups=2, capacity=CAPACITY, workers=0, cache=str(data.parent / "cache"))
    return replace(tiny_settings(), objective="grpo", align_weight=0.0, grpo=grpo, data=values)


@pytest.fixture(scope="module")
def config(av_world, tmp_path_factory) -> TrainConfig:
    return settings(write_prompts(av_world, tmp_path_factory.mktemp("grpo") / "prompts.jsonl"), instruction="Be brief.")


@pytest.fixture(scope="module")
def engine(config) -> Engine:
    model = OmniVinci(config.model.replace(text=replace(config.model.text, num_hidden_layers=2)))
    return Engine(model, random_params(model.config), Processor(model.config, tiny_tokenizer()), rows=8, capacity=1024)


@pytest.fixture(scope="module")
def prompts(config, engine) -> list[LoadedPrompt]:
    data = open_prompts(engine.processor, config)
    loaded = [load_prompt(data, sample, engine.processor) for sample in range(4)]
    assert all(isinstance(prompt, LoadedPrompt) for prompt in loaded)
    return [prompt for prompt in loaded if isinstance(prompt, LoadedPrompt)]


def sampled(engine: Engine, prompts: list[LoadedPrompt], rewards: Rewards, resamples: int = 0):
    sampling = [Sampling(temperature=1.0, top_p=0.99, seed=n, max_new_tokens=LONGEST) for n in range(len(prompts))]
    return rollout(engine, prompts, sampling, ANSWERS, rewards, resamples)


def test_sampler_and_trainer_agree_on_packed_rows(config, engine, prompts, monkeypatch):
    encoded = Counter()
    for name in ("encode_vision", "encode_sound"):
        encode = getattr(media_module, name)
        monkeypatch.setattr(
            media_module, name, lambda *given, name=name, encode=encode: encoded.update([name]) or encode(*given)
        )
    found = sampled(engine, prompts, Rewards(config.grpo))
    # The encoders run on each slice of a prompt's media once, not once for each answer.
    assert encoded["encode_vision"] == sum(len(list(vision_slices(p.row, p.tiles, config.model))) for p in prompts) > 1
    assert encoded["encode_sound"] == sum(len(list(sound_slices(p.row, p.windows, config.model))) for p in prompts) > 1
    assert [len(group) for group in found.requests] == [ANSWERS] * 4
    assert len({text for texts in found.texts for text in texts}) > 8
    assert found.texts[1][2] == engine.processor.tokenizer.decode(
        [token for token in found.requests[1][2].tokens if token != engine.processor.tokenizer.eos_id]
    )

    answers = [[request.tokens for request in group] for group in found.requests]
    rows, spans = pack_answers(prompts, answers, engine.model.config, CAPACITY, 2)
    assert rows.segment_ids.max() > 1  # some rows hold several answers
    for prompt in range(4):
        for answer, span in enumerate(spans[prompt]):
            at = span.group, span.row, slice(span.start, span.end)
            assert rows.targets[at].tolist() == answers[prompt][answer]
            assert rows.loss_weights[at].all()
            assert rows.tokens[span.group, span.row, span.start] == prompts[prompt].row.tokens[-1]
    assert rows.loss_weights.sum() == sum(len(tokens) for group in answers for tokens in group)
    # The frames and windows of a prompt are in its group once; all its answers read the same tokens.
    tiles, windows = (sum(getattr(prompt.row, name) for prompt in prompts[:2]) for name in ("num_tiles", "num_windows"))
    assert np.ptp(rows.tiles[0, :tiles].reshape(tiles, -1), axis=1).all() and not rows.tiles[0, tiles:].any()
    assert rows.windows[0, :windows].any(axis=(1, 2)).all() and not rows.windows[0, windows:].any()
    for kind in (VISION, AUDIO):
        used = rows.slot_index[0][rows.slot_kind[0] == kind]
        assert len(used) == ANSWERS * len(set(used.tolist())) > 0

    params = random_params(engine.model.config)
    score = jax.jit(lambda rows: score_tokens(engine.model, params, rows, 1.0).logprobs)
    expected = at_tokens(rows.tokens.shape, spans, lambda n, answer: found.requests[n][answer].logprobs)
    trained = rows.loss_weights > 0
    np.testing.assert_allclose(np.asarray(score(rows))[trained], expected[trained], atol=1e-4)

    # The same from features of the encoders, of which one trains in the second case.
    for trainable in ({"llm"}, {"sound_tower"}):
        media = encoded_media(engine.model, dict.fromkeys(trainable))
        encoded = encode_prompts(engine.model, params, [*prompts, None], media)
        assert encoded[4] is None
        features, _ = pack_answers(encoded[:4], answers, engine.model.config, CAPACITY, 2, media)
        assert features.tiles.shape == (2, 64, 4, 64) and (features.windows.shape[-1] == 64) == ("llm" in trainable)
        np.testing.assert_allclose(np.asarray(score(features))[trained], expected[trained], atol=1e-4)
    assert encoded_media(engine.model, {"vision_tower": {}, "sound_tower": {}}).tiles.dtype == np.uint8


def test_several_groups_share_a_prompt(config, engine, prompts):
    answers = [[[10 * prompt + answer] * (answer + 1) for answer in range(ANSWERS)] for prompt in range(4)]
    data = replace(config.data, groups=8, capacity=Capacity(rows=2, slots=420, tiles=32, windows=6, clips=2))
    assert prompt_capacity(replace(config, data=data)) == prompt_capacity(config)
    rows, spans = pack_answers(prompts, answers, engine.model.config, data.capacity, 8)
    for prompt, found in enumerate(spans):
        assert [span.group for span in found] == [2 * prompt, 2 * prompt, 2 * prompt + 1, 2 * prompt + 1]
        for answer, span in zip(answers[prompt], found, strict=True):
            assert rows.targets[span.group, span.row, span.start : span.end].tolist() == answer
    whole, _ = pack_answers(prompts, answers, engine.model.config, CAPACITY, 2)
    assert rows.loss_weights.sum() == whole.loss_weights.sum() == 4 * (1 + 2 + 3 + 4)
    np.testing.assert_array_equal(rows.tiles[0], rows.tiles[1])
    np.testing.assert_array_equal(rows.tiles[0][: prompts[0].row.num_tiles], prompts[0].tiles)
    with pytest.raises(ConfigError, match=r"must be a multiple of config.data.groups = 12, or the answers .* \(4\)"):
        replace(config, data=replace(data, groups=12))


def test_groups_of_equal_rewards_are_sampled_anew(config, engine, prompts, monkeypatch):
    seen = []

    def third_call_differs(answered) -> float:
        seen.append(answered.text)
        return float(len(seen) > 2 * ANSWERS + 1 and len(seen) % 2)

    monkeypatch.setitem(BUILT_IN, "third", third_call_differs)
    rewards = Rewards(replace(config.grpo, rewards=(RewardConfig("third"),)))
    sample = rollouts_module._sample
    samples = []
    monkeypatch.setattr(rollouts_module, "_sample", lambda *given: samples.append(given[-1]) or sample(*given))
    found = sampled(engine, prompts[2:3], rewards, resamples=5)
    assert samples == [range(0, 4), range(4, 8), range(8, 12)]
    assert found.texts[0] == seen[8:12] and set(seen[8:12]) != set(seen[:4])
    assert found.rewards.tolist() == [[[0, 0, 1, 0]]] and found.total.tolist() == [[0, 0, 1, 0]]


def test_a_step_whose_prompts_cannot_be_read_has_no_answers(config, engine):
    found = rollout(engine, [], [], ANSWERS, Rewards(config.grpo))
    assert found.rewards.shape == (2, 0, ANSWERS) and found.total.shape == (0, ANSWERS)
    rows, spans = pack_answers([None] * 4, [[]] * 4, engine.model.config, CAPACITY, 2)
    assert spans == [[]] * 4 and not rows.segment_ids.any()


def test_prompts_end_where_the_answer_begins(config, engine, prompts):
    assert [prompt.question.answer for prompt in prompts] == ["B", "red", "7", "A"]
    text = engine.processor.tokenizer.decode([token for token in prompts[2].row.tokens.tolist() if token])
    assert text.endswith("How many?\nBe brief.\nassistant\n") and "seven" not in text
    assert prompts[2].text == "How many?\nBe brief."
    data = open_prompts(engine.processor, config)
    first = [sample for sample, _ in zip(prompt_order(data, 3, 0), range(10), strict=False)]
    assert sorted(first[:4]) == sorted(first[4:8]) == [0, 1, 2, 3] and first[:4] != first[4:8]
    assert next(prompt_order(data, 3, 7)) == first[7]


def test_every_length_finds_a_row():
    lengths = np.array([3, 9, 4, 10, 6, 1])
    rows = first_fit(lengths, Capacity(rows=4, slots=10, tiles=1, windows=1, clips=1))
    assert rows == [3, 1, 2, 0, 2, 1]


def test_capacities_that_cannot_hold_the_longest_answers_are_errors(config):
    assert prompt_capacity(config) == Capacity(1, 420 - 12 - 16, 32, 6, 2)
    few = replace(config, data=replace(config.data, capacity=CAPACITY._replace(rows=7)))
    with pytest.raises(ConfigError, match=r"capacity.rows is 7: 2 prompts a group .* with 4 answers need 8"):
        prompt_capacity(few)
    short = replace(config, data=replace(config.data, capacity=CAPACITY._replace(slots=20)))
    with pytest.raises(ConfigError, match=r"capacity.slots is 20: a row must hold a prompt and .* = 12"):
        prompt_capacity(short)


def test_records_without_an_answer_are_listed_with_their_line(config, engine, tmp_path):
    lines = [{"messages": [{"role": "user", "content": "Who?"}], "answer": "Ann"}] * 3
    lines[1] = {"messages": [{"role": "user", "content": "Who?"}]}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError) as error:
        open_prompts(engine.processor, settings(tmp_path / "prompts.jsonl"))
    assert 'prompts.jsonl:2: there is no "answer" beside the messages' in str(error.value)
    assert "1 of 3 samples cannot be used" in str(error.value)


def test_settings_that_make_no_sense_are_errors(config):
    for change, message in (
        ({"answers": 1}, r"config.grpo.answers is 1: it must be 2 or more"),
        ({"temperature": 0.0}, r"config.grpo.temperature is 0.0: it must be above 0"),
        ({"rewards": ()}, r"config.grpo.rewards is \(\): it must be at least one"),
    ):
        with pytest.raises(ConfigError, match=message):
            GRPOConfig(**change)
    for change, message in (
        ({"grpo": replace(config.grpo, prompts=3)}, "config.grpo.prompts is 3: it must be a multiple of .* = 2"),
        ({"align_weight": 0.1}, "GRPO has no contrastive loss"),
        ({"steps": 0, "stop_after_tokens": 9}, "give the length of a GRPO run in steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **change)
