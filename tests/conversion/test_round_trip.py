"""to_torch(from_torch(x)) is x bit for bit, and keeps the modules that training adds."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import conversion
import omnivinci_jax
from conversion.from_torch import from_torch
from conversion.layouts import read_layout
from conversion.tensor_files import DTYPES, INDEX, TensorWriter, stored_tensors
from conversion.to_torch import to_torch
from omnivinci_jax.config import Qwen2Config, TimeEmbeddingConfig
from omnivinci_jax.model_dir import save
from tests.conversion.checkpoints import different, make, make_trained, parameters
from tests.tiny import REPOSITORY, random_params, tiny_config, tiny_tokenizer

LAYOUTS = ("released", "merged")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recorded_checkpoint(golden, layout, tmp_path):
    source = golden / f"checkpoint_{layout}"
    notes = from_torch(source, tmp_path / "model")
    assert any("initialised" in note and "omni_align" in note for note in notes)
    # Both have the successor's model_type; only the released code reads the released layout.
    whose = "OmniVinci" if layout == "released" else "Audio-Visual Flamingo"
    scheme, sampling = ("crte", "released") if layout == "released" else ("harmonic_shortest", "port")
    schemes = f"time embedding {scheme} for video and {scheme} for sound"
    expected = f"read as {whose} (model_type 'audiovisualflamingo'): {schemes}, frame_sampling {sampling}"
    assert notes[0].startswith(expected)
    for target in LAYOUTS:
        to_torch(tmp_path / "model", tmp_path / target, layout=target)
        assert different(source, tmp_path / target) == []
    assert {path.name for path in (tmp_path / "released").iterdir()} >= {
        "llm", "vision_tower", "mm_projector", "sound_tower", "sound_mm_projector", "config.json",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_are_kept(dtype, tmp_path):
    make(tmp_path / "source", "released", dtype)
    from_torch(tmp_path / "source", tmp_path / "model")
    to_torch(tmp_path / "model", tmp_path / "back", layout="released")
    assert different(tmp_path / "source", tmp_path / "back") == []
    stored = {str(leaf.dtype) for leaf in parameters(tmp_path / "model").values()}
    assert stored == {str(DTYPES[dtype])}


def test_types_are_cast(golden, tmp_path):
    from_torch(golden / "checkpoint_merged", tmp_path / "model", dtype="bfloat16")
    to_torch(tmp_path / "model", tmp_path / "back", layout="merged", dtype="float32")
    before, after = (read_layout(folder) for folder in (golden / "checkpoint_merged", tmp_path / "back"))
    for name, tensor in before.items():
        expected = tensor.read().astype(DTYPES["BF16"]).astype(np.float32)
        np.testing.assert_array_equal(after[name].read(), expected)


def test_shards_and_index(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(50, 10)).astype(np.float32) for name in "abcde"}
    writer = TensorWriter(tmp_path, [(name, x.shape, x.dtype) for name, x in arrays.items()], limit=5000)
    for name, array in arrays.items():
        writer.write(name, array)
    writer.close()
    assert (tmp_path / INDEX).is_file() and len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    for name, tensor in stored_tensors(tmp_path).items():
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_sound_tower_with_the_audio_tower_prefix(tmp_path):
    make(tmp_path / "source", "released")
    sound = tmp_path / "source" / "sound_tower"
    tensors = {f"audio_tower.{name}": tensor.read() for name, tensor in stored_tensors(sound).items()}
    before = read_layout(tmp_path / "source")["sound_tower.conv1.weight"].read()
    writer = TensorWriter(sound, [(name, x.shape, x.dtype) for name, x in tensors.items()])
    for name, array in tensors.items():
        writer.write(name, array)
    writer.close()
    assert read_layout(tmp_path / "source")["sound_tower.conv1.weight"].read().tobytes() == before.tobytes()
    from_torch(tmp_path / "source", tmp_path / "model")


def test_a_trained_model_round_trips(tmp_path):
    learned = TimeEmbeddingConfig("learned", max_time=10.0, trope_dim=128)
    text = Qwen2Config(1000, 128, 384, 3, 4, 2, tie_word_embeddings=True)
    config = tiny_config(audio_compression="conv", video_time=learned, sound_time=learned, text=text)
    params = random_params(config)
    # Rows past the vocabulary are padding, which an export drops.
    table = params["llm"]["embed_tokens"]["embedding"]
    params["llm"]["embed_tokens"]["embedding"] = table.at[1000:].set(0)
    save(tmp_path / "model", config, params, tiny_tokenizer())

    for layout in LAYOUTS:
        to_torch(tmp_path / "model", tmp_path / layout, layout=layout)
        notes = from_torch(tmp_path / layout, tmp_path / f"model_{layout}")
        assert not any("initialised" in note for note in notes)
        before, after = parameters(tmp_path / "model"), parameters(tmp_path / f"model_{layout}")
        assert before.keys() == after.keys() and any(path.startswith("sound_mm_projector/conv/") for path in before)
        for path, leaf in before.items():
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
        assert (tmp_path / f"model_{layout}" / "tokenizer.json").is_file()


def test_both_loaders_give_the_same_model(tmp_path, repository):
    tokenizer = repository / "configs" / "tiny_tokenizer"
    from_torch(make_trained(tmp_path / "torch"), tmp_path / "model", tokenizer=tokenizer, dtype="bfloat16")
    to_torch(tmp_path / "model", tmp_path / "back", layout="released")
    first, second = omnivinci_jax.load(tmp_path / "model"), conversion.load(tmp_path / "back")
    assert first.model == second.model and first.processor.tokenizer.media_ids == second.processor.tokenizer.media_ids
    assert jax.tree.map(lambda x: str(x.dtype), first.params) == jax.tree.map(lambda x: str(x.dtype), second.params)
    bits = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), first.params, second.params)
    assert all(jax.tree.leaves(bits))
    assert {str(x.dtype) for x in jax.tree.leaves(first.params)} == {"bfloat16"}


PEAK = """
import sys
from tests.memory import peak_megabytes
from conversion.{command} import main
main(sys.argv[1:])
print(peak_megabytes() << 20)
"""


def peak_bytes(command: str, *arguments: str) -> int:
    code = PEAK.format(command=command)
    run = [sys.executable, "-c", code, *map(str, arguments)]
    return int(subprocess.run(run, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout.split()[-1])


def test_memory_is_bounded(tmp_path):
    """Additional layers raise the peak by at most 8/17.5 of their size, the ratio allowed at full size."""
    align, peaks, sizes = type(tiny_config().omni_align)(num_layers=1, num_heads=8), [], []
    for layers in (2, 6):
        config = tiny_config(text=Qwen2Config(4096, 1024, 4096, layers, 8, 2), omni_align=align)
        source, model, back = (tmp_path / f"{name}_{layers}" for name in ("torch", "model", "back"))
        make(source, config=config)
        peaks.append(
            (peak_bytes("from_torch", source, model), peak_bytes("to_torch", model, back, "--layout", "merged"))
        )
        assert different(source, back) == []
        sizes.append(sum(file.stat().st_size for file in source.iterdir()))
    assert sizes[1] - sizes[0] > 100e6
    for small, big in zip(*peaks, strict=True):
        assert big - small < (sizes[1] - sizes[0]) * 8 / 17.5, peaks
