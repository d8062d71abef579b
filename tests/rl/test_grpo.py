"""Whole GRPO runs of a tiny random model: they resume bit for bit, with LoRA as without, and say what is wrong."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from flax import traverse_util

from omnivinci_jax import model_dir
from omnivinci_jax.data.setup import make_processor
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.siglip import SiglipTower
from omnivinci_jax.rl import encoders
from omnivinci_jax.rl.prompts import load_prompt, open_prompts, prompt_capacity
from omnivinci_jax.rl.rewards import BUILT_IN, Answered
from omnivinci_jax.run import train
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import (
    DataConfig,
    GRPOConfig,
    LoraConfig,
    OptimizerConfig,
    RewardConfig,
    TrainConfig,
    load_config,
    to_mapping,
)
from omnivinci_jax.train.metrics import read_metrics
from tests.multidevice.programs import run_on_devices
from tests.rl.data import write_prompts
from tests.rl.killed import has_a, vowels
from tests.tiny import random_params, tiny_settings, tiny_tokenizer

STEPS = 3
SAME = ("step", "reward", "loss", "kl", "entropy", "grad_norm", "length")


@pytest.fixture(scope="module")
def config(av_world, tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("grpo")
    tiny = tiny_settings()
    model = tiny.model.replace(
        text=replace(tiny.model.text, num_hidden_layers=1),
        vision=replace(tiny.model.vision, num_hidden_layers=2),
        audio=replace(tiny.model.audio, encoder_layers=1),
    )
    params = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, random_params(model))
    model_dir.save(epath.Path(folder / "base"), model, params, tiny_tokenizer())
    prompts = str(write_prompts(av_world, folder / "prompts.jsonl"))
    capacity = Capacity(rows=6, slots=420, tiles=64, windows=12, clips=4)
    return replace(
        tiny,
        model=model,
        start_from=str(folder / "base"),
        objective="grpo",
        align_weight=0.0,
        tower_remat="none",
        decoder_remat="none",
        frozen=(*tiny.frozen, "vision_tower/.*", "sound_tower/.*", "omni_align/.*"),
        data=DataConfig(train=prompts, groups=2, capacity=capacity, workers=0, cache=str(folder / "cache")),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.5),
        grpo=GRPOConfig(
            prompts=4, answers=3, updates=2, max_new_tokens=8, rewards=(RewardConfig("vowels"), RewardConfig("format"))
        ),
        steps=STEPS,
        checkpoint_every=10,
        log_every=1,
    )


class EncoderRuns:
    """Counts the tiles and windows that the encoders of a run get before its batches, and their other uses."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.items, self.elsewhere, self._inside = Counter(), [], False
        encode = encoders._encode

        def counted(model: OmniVinci, tower: str, params: dict, items: np.ndarray) -> jax.Array:
            self.items[tower] += int(items.any(axis=tuple(range(1, items.ndim))).sum())  # the rest is padding
            self._inside = True
            try:
                return encode(model, tower, params, items)
            finally:
                self._inside = False

        patch.setattr(encoders, "_encode", counted)
        for tower in (SiglipTower, AFWhisperTower):
            patch.setattr(tower, "__call__", self._traced(tower.__call__))

    def _traced(self, call: Callable) -> Callable:
        def traced(module: nn.Module, items: jax.Array) -> jax.Array:
            if not self._inside and not module.is_initializing():
                self.elsewhere.append(module)
            return call(module, items)

        return traced


@pytest.fixture(scope="module")
def whole_run(config, tmp_path_factory) -> tuple[Path, EncoderRuns]:
    """The work directory of an uninterrupted run, and where its encoders ran."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        runs = EncoderRuns(patch)
        patch.setitem(BUILT_IN, "vowels", vowels)
        patch.setitem(BUILT_IN, "format", has_a)
        assert train(config, epath.Path(workdir)) is None
    return workdir, runs


@pytest.fixture(scope="module")
def whole(whole_run) -> Path:
    return whole_run[0]


def params_of(folder: Path) -> dict:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return model_dir.load_params(folder, jax.tree.map(lambda _: device, model_dir.stored_params(folder)))


def assert_same_bits(found: Path, expected: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, params_of(found / "model"), params_of(expected / "model"))
    again, lines = (read_metrics(folder / "metrics.jsonl") for folder in (found, expected))
    assert [[line[name] for name in SAME] for line in again] == [[line[name] for name in SAME] for line in lines]
    assert read_metrics(found / "answers.jsonl") == read_metrics(expected / "answers.jsonl")


def test_a_run_writes_metrics_answers_and_a_report(config, whole):
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["sampler_difference"] < 1e-4
        assert line["reward"] == pytest.approx(line["vowels_reward"] + line["format_reward"])
        assert line["kl"] >= 0 and line["entropy"] > 0 and 1 <= line["length"] <= 8
        assert 0 <= line["zero_variance"] <= 1 and 0 <= line["truncated"] <= 1
    assert lines[0]["kl"] < lines[-1]["kl"]
    answers = read_metrics(whole / "answers.jsonl")
    assert [line["step"] for line in answers] == [1, 2, 3]
    assert all(len(line["answers"]) == 3 for line in answers)
    text = answers[1]["answers"][2]
    assert text["vowels"] == pytest.approx(vowels(Answered("", text["text"], {}, None, "")))  # pyright: ignore
    report = (whole / "report.md").read_text()
    assert "3 steps" in report and "vowels" in report and (whole / "rewards.png").stat().st_size > 10_000
    trained, base = params_of(whole / "model"), params_of(Path(config.start_from))
    assert not np.array_equal(trained["llm"]["embed_tokens"]["embedding"], base["llm"]["embed_tokens"]["embedding"])


def test_a_run_whose_reward_fails_is_saved_and_resumes_bit_for_bit(config, whole, tmp_path, monkeypatch):
    parts, calls = tmp_path / "parts", []
    monkeypatch.setitem(BUILT_IN, "format", has_a)

    def fails_in_step_3(answered: Answered) -> float:
        calls.append(answered)
        if len(calls) > 2 * 4 * 3:
            raise UserError(f"{answered.where}: the reward 'vowels' is broken")
        return vowels(answered)

    monkeypatch.setitem(BUILT_IN, "vowels", fails_in_step_3)
    with pytest.raises(UserError, match=r"prompts.jsonl:\d: the reward 'vowels' is broken"):
        train(config, epath.Path(parts))
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["2"]
    monkeypatch.setitem(BUILT_IN, "vowels", vowels)
    train(config, epath.Path(parts))
    assert_same_bits(parts, whole)


def test_a_run_killed_while_saving_in_an_update_and_in_a_rollout_ends_with_the_same_bits(
    config, whole, tmp_path, monkeypatch
):
    saving, workdir = replace(config, checkpoint_every=1), tmp_path / "killed"
    (tmp_path / "config.json").write_text(json.dumps(to_mapping(saving)))
    kills = ("save", "update", "rollout")
    run_on_devices(1, "tests.rl.killed", tmp_path / "config.json", workdir, "fsdp=1", *kills)
    assert not (workdir / "model").exists()
    monkeypatch.setitem(BUILT_IN, "vowels", vowels)
    monkeypatch.setitem(BUILT_IN, "format", has_a)
    train(saving, epath.Path(workdir))
    assert_same_bits(workdir, whole)


def test_eight_devices_train_like_one(config, whole, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_mapping(config)))
    run_on_devices(8, "tests.rl.killed", tmp_path / "config.json", tmp_path / "eight", "fsdp=2,tensor=4")
    assert_equal_but_for_rounding(tmp_path / "eight", whole, Path(config.start_from))


def assert_equal_but_for_rounding(found: Path, expected: Path, base: Path) -> None:
    assert read_metrics(found / "answers.jsonl") == read_metrics(expected / "answers.jsonl")
    lines, same = (read_metrics(folder / "metrics.jsonl") for folder in (found, expected))
    assert all(line["sampler_difference"] < 1e-4 for line in lines)
    for name in SAME:
        # The loss of the first step is 0 but for rounding: the advantages of a group add up to 0.
        assert lines[0][name] == pytest.approx(same[0][name], rel=1e-3, abs=1e-5), name
        if name != "grad_norm":  # later it differs: Adam makes whole steps of gradients that are only rounding
            assert [line[name] for line in lines] == pytest.approx([line[name] for line in same], rel=0.05, abs=3e-3)
    params = (
        traverse_util.flatten_dict(params_of(folder), sep="/") for folder in (found / "model", expected / "model", base)
    )
    eight, one, start = params
    for path, leaf in one.items():
        moved = np.linalg.norm(np.subtract(leaf, start[path]))
        assert np.linalg.norm(np.subtract(eight[path], leaf)) <= 0.2 * moved, path


def test_frozen_encoders_run_once_for_each_prompt(config, whole_run):
    processor = make_processor(config)
    data = open_prompts(processor, config)
    prompts = [load_prompt(data, sample, processor) for sample in range(4)]
    tiles, windows = (sum(len(getattr(prompt, name)) for prompt in prompts) for name in ("tiles", "windows"))
    _, runs = whole_run
    # Not once for each of 3 answers, or for the reference, the old policy and 2 updates.
    assert runs.items == {"vision_tower": STEPS * tiles, "sound_tower": STEPS * windows} and tiles > windows > 0
    assert runs.elsewhere == []


def test_lora_trains_adapters_against_the_base_and_evaluates(config, tmp_path, monkeypatch):
    monkeypatch.setitem(BUILT_IN, "vowels", vowels)
    grpo = replace(config.grpo, updates=1, rewards=(RewardConfig("vowels", 2.0),), variant="dr_grpo")
    data = replace(config.data, val=config.data.train, held_out=config.data.train)
    lora = LoraConfig(rank=2, targets=("llm/layers/self_attn/[qv]_proj/kernel",))
    changed = replace(config, grpo=grpo, data=data, lora=lora, eval_every=1, microbatches=2)
    score = train(changed, epath.Path(tmp_path / "lora"))
    train_lines = [line for line in read_metrics(tmp_path / "lora" / "metrics.jsonl") if line["split"] == "train"]
    # The adapters change nothing at first, so the policy is the base; then they do.
    assert train_lines[0]["kl"] < 1e-9 and train_lines[2]["kl"] > 1e-7
    assert train_lines[0]["clipped"] == 0
    assert all(line["sampler_difference"] < 1e-4 for line in train_lines)
    val_lines = [line for line in read_metrics(tmp_path / "lora" / "metrics.jsonl") if line["split"] == "val"]
    best = max(line["reward"] for line in val_lines)
    assert score is not None and score.metrics["reward"] == pytest.approx(best)
    assert score.metrics["reward"] == pytest.approx(2 * score.metrics["vowels_reward"])
    assert json.loads((tmp_path / "lora" / "results.json").read_text())["count"] == 4
    (before,) = (line for line in read_metrics(tmp_path / "lora" / "metrics.jsonl") if line["split"] == "held_out")
    row = f"| reward | {before['reward']:.3f} | {score.reward:.3f} |"
    assert before["step"] == 0 and row in (tmp_path / "lora" / "report.md").read_text()


def test_a_model_that_does_not_know_the_format_stops_with_what_it_said(config, tmp_path):
    with pytest.raises(UserError) as error:
        train(replace(config, grpo=replace(config.grpo, rewards=GRPOConfig().rewards)), epath.Path(tmp_path / "run"))
    assert str(error.value).startswith("the format reward of all 12 first answers is 0: none is <think>...</think>")
    assert "prompts.jsonl:" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()


def test_the_configurations_start_from_a_model(config, repository):
    paper = load_config([f"--config={repository}/configs/grpo_9b.py:{config.start_from}"])
    grpo = paper.grpo
    assert (grpo.prompts, grpo.answers, grpo.temperature, grpo.top_p, grpo.max_new_tokens) == (64, 8, 1.0, 0.99, 2048)
    assert paper.model.num_video_frames == 64 and paper.objective == "grpo"
    assert prompt_capacity(paper) == Capacity(1, 13_312 - 2048 - 16, 64, 20, 8)
    tiny = load_config([f"--config={repository}/configs/grpo_tiny.py:{config.start_from}", "--config.grpo.beta=0.0"])
    assert prompt_capacity(tiny) == Capacity(1, 144, 24, 2, 1) and tiny.grpo.beta == 0
    with pytest.raises(ConfigError, match=r"config.grpo.variant is 'ppo'; supported: 'grpo', 'dapo', 'dr_grpo'"):
        load_config([f"--config={repository}/configs/grpo_tiny.py:{config.start_from}", "--config.grpo.variant=ppo"])
