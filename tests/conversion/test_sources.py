"""Every source of docs/conversion.md: written by transformers, converted, and computing what transformers computes."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from conversion.source import Source, open_source
from conversion.tensor_files import INDEX, SINGLE
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.qwen2 import Qwen2
from omnivinci_jax.models.siglip import SiglipTower
from tests.conversion.published import RECORDED, SOURCES
from tests.parity.golden import assert_close
from tests.parity.test_towers import randomise

TOLERANCE = 1e-5
CLASSES = {
    "llm": ("Qwen2Model", "LlamaModel"),
    "vision_tower": ("SiglipVisionModel",),
    "sound_tower": ("Qwen2AudioEncoder", "AudioFlamingo3Encoder", "WhisperEncoder"),
}
OTHERS = {"llm": "Qwen2ForCausalLM", "vision_tower": "SiglipVisionModel", "sound_tower": "Qwen2AudioEncoder"}
RECORDINGS = json.loads(RECORDED.read_text())
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
WINDOWS = np.random.default_rng(1).normal(size=(2, 40, 16)).astype(np.float32)
LARGER = {
    source for source in SOURCES if "Audio" in source or "Sig" in source or "Whisper" in source or "Pali" in source
}
LARGER -= {"Qwen2AudioEncoder"}
TOKENS = np.random.default_rng(2).integers(0, 96, (2, 7))


@cache
def model(source: str) -> torch.nn.Module:
    return randomise(SOURCES[source][1]())


def reference(module: torch.nn.Module, part: str) -> np.ndarray:
    """What transformers computes with the part of `module`: logits, SigLIP's features, pooled sound features."""
    inner = next(child for child in module.modules() if type(child).__name__ in CLASSES[part])
    with torch.no_grad():
        if part == "llm":
            head = module.get_output_embeddings() or inner.embed_tokens
            return (inner(torch.from_numpy(TOKENS)).last_hidden_state @ head.weight.T).numpy()
        if part == "vision_tower":
            pixels = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
            return inner(pixels, output_hidden_states=True).hidden_states[-2].numpy()
        mel = torch.from_numpy(WINDOWS).transpose(1, 2)
        if "Whisper" not in type(inner).__name__:
            mask = {} if "Qwen2" in type(inner).__name__ else {"input_features_mask": torch.ones(mel[:, 0].shape).int()}
            return inner(mel, **mask).last_hidden_state.numpy()
        # Whisper's encoder does not pool; AF-Whisper pools before the last norm.
        captured = []
        hook = inner.layer_norm.register_forward_hook(lambda layer, args, out: captured.append(args[0]))
        inner(mel)
        hook.remove()
        pooled = torch.nn.functional.avg_pool1d(captured[0].transpose(1, 2), 2).transpose(1, 2)
        return inner.layer_norm(pooled).numpy()


def parameters(opened: Source, part: str) -> dict:
    """Reads the leaves of one part."""
    leaves = {}
    for path, leaf in opened.leaves.items():
        if path.startswith(f"{part}/"):
            array = leaves[path.removeprefix(f"{part}/")] = np.empty(leaf.shape, leaf.dtype)
            for index, piece in leaf.pieces():
                array[... if index is None else index] = piece
    return unflatten_dict(leaves, sep="/")


def forward(config: OmniVinciConfig, part: str, params: dict) -> np.ndarray:
    """What our part computes: see `reference`."""
    if part == "llm":
        return np.asarray(decode(config, params))[..., : config.text.vocab_size]
    return np.asarray(encode(config, part, params))


@partial(jax.jit, static_argnums=0)
def decode(config: OmniVinciConfig, params: dict) -> jax.Array:
    module, shape = Qwen2(config.text), TOKENS.shape
    x = module.apply({"params": params}, jnp.asarray(TOKENS), method=module.embed)
    positions, segments = jnp.broadcast_to(jnp.arange(shape[1]), shape), jnp.ones(shape, int)
    hidden = module.apply({"params": params}, x, positions, segments)
    return module.apply({"params": params}, hidden, method=module.logits)


@partial(jax.jit, static_argnums=(0, 1))
def encode(config: OmniVinciConfig, part: str, params: dict) -> jax.Array:
    if part == "vision_tower":
        return SiglipTower(config.vision).apply({"params": params}, jnp.asarray(IMAGES))
    return AFWhisperTower(config.audio).apply({"params": params}, jnp.asarray(WINDOWS))


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """One checkpoint of each part, to complete the model."""
    folder = tmp_path_factory.mktemp("others")
    for part, source in OTHERS.items():
        model(source).save_pretrained(folder / part)
    return {part: folder / part for part in OTHERS}


def transformers_4(source: str, folder: Path) -> None:
    """Writes what transformers 4.57 writes: its config.json, and each tensor under its name."""
    recorded = RECORDINGS[source]
    model(source).save_pretrained(folder)
    tensors = load_file(folder / SINGLE)
    names = sorted({name.format(n=n) for name in recorded["names"] for n in (0, 1)})

    def shared(name: str, other: str) -> int:
        """Parts that the two names have in common at the end."""
        pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), 99)

    # Newer versions leave out or add a prefix.
    renamed = {name: max(tensors, key=lambda other, name=name: shared(name, other)) for name in names}
    assert sorted(renamed.values()) == sorted(tensors)
    save_file({name: tensors[other] for name, other in renamed.items()}, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(recorded["config"]))


def transformers_5_own_names(source: str, folder: Path) -> None:
    """The names of the modules, which save_pretrained otherwise converts to those of version 4."""
    model(source).save_pretrained(folder, save_original_format=False)


def transformers_5(source: str, folder: Path) -> None:
    """In bfloat16 and in shards."""
    module = SOURCES[source][1]()
    module.load_state_dict(model(source).state_dict())
    module.to(torch.bfloat16).save_pretrained(folder, max_shard_size="12KB")
    assert (folder / INDEX).is_file()


WRITERS = [transformers_4, transformers_5, transformers_5_own_names]


CASES = [
    pytest.param(source, write, id=f"{source} by {write.__name__}")
    for source in SOURCES
    for write in WRITERS
    if write is not transformers_4 or source in RECORDINGS
]


def test_every_source_that_transformers_4_has_is_recorded():
    assert SOURCES.keys() - RECORDINGS.keys() == {"Audio Flamingo 3", "Audio Flamingo 3's decoder"}


@pytest.mark.parametrize("source, write", CASES)
def test_output_equals_transformers(source, write, others, tmp_path):
    part = SOURCES[source][0]
    write(source, tmp_path)

    opened = open_source(None, {**others, part: tmp_path})

    params = parameters(opened, part)
    stored = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    assert stored == ({"bfloat16"} if write is transformers_5 else {"float32"})
    module = model(source)
    if write is transformers_5:
        module = SOURCES[source][1]()
        module.load_state_dict({name: x.bfloat16() for name, x in model(source).state_dict().items()})
        params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    expected = reference(module.eval(), part)
    assert np.abs(expected).max() > 0.1
    assert_close(forward(opened.config, part, params), expected, TOLERANCE)
    assert any(f"{tmp_path}: skipped" in note for note in opened.notes) == (source in LARGER)
