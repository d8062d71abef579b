"""Quantizes a model directory layer by layer."""

import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from omnivinci_jax import leaves
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import from_json, quantization_of, read_json, untrained_modules, write_config
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import UserError
from omnivinci_jax.leaves import LazyLeaf, Pieces, StoredLeaf, StoredLeaves
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.model_dir import check_shapes, load_params, shardings_of, stored_params
from omnivinci_jax.models.af_whisper import AFWhisperLayer
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.quantized import QuantizedArray, Scheme, is_quantized, quantize
from omnivinci_jax.models.qwen2 import Qwen2Layer
from omnivinci_jax.models.siglip import SiglipLayer
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.quantize.calibration import Inputs, Statistics, observe, read_calibration, stack_inputs
from omnivinci_jax.quantize.folding import Fold, fold, folds
from omnivinci_jax.quantize.recipes import Recipe
from omnivinci_jax.quantize.search import awq_candidates, best_clip, best_scales, smooth_candidates
from omnivinci_jax.sequence.tokenizer import FILES, Tokenizer

STACKS: dict[str, Callable[[OmniVinciConfig], nn.Module]] = {
    "vision_tower/layers": lambda config: SiglipLayer(config.vision),
    "sound_tower/layers": lambda config: AFWhisperLayer(config.audio),
    "llm/layers": lambda config: Qwen2Layer(config.text),
}
_FLOAT32 = np.dtype(np.float32)
_quantize = jax.jit(quantize, static_argnums=(1, 2))


class _Source(NamedTuple):
    """The model directory to quantize."""

    folder: Path
    root: dict[str, Any]
    config: OmniVinciConfig
    shapes: dict[str, jax.ShapeDtypeStruct]
    leaves: StoredLeaves

    def layer(self, stack: str, index: int) -> dict[str, np.ndarray]:
        """Reads one layer in float32, by path within the layer."""
        paths = [path for path in self.shapes if path.startswith(f"{stack}/")]
        return {path.removeprefix(f"{stack}/"): self.leaves.open(path).read(index).astype(np.float32) for path in paths}


def quantize_model(folder: Path, out: Path, recipe: Recipe, calibration: Path | None = None) -> None:
    """Quantizes a model directory and writes another one.

    Reads and quantizes one layer at a time, and keeps finished layers beside `out`, so that the same call resumes after
    them. Calibration also holds the towers and the activations of the calibration data.

    Args:
        folder: the model directory.
        out: the model directory to create.
        recipe: what to quantize, and how.
        calibration: data file with the media that the model will see; needed unless `recipe.method` is rtn.

    Raises:
        UserError: the model is quantized already, the recipe does not fit it, the calibration data cannot be read or
            has no media, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; nothing was overwritten")
    source = _open(folder)
    schemes = recipe.schemes(source.config)
    staging = _Staging(source, out, recipe, calibration)
    batches: dict[str, list[Inputs]] = {}
    if recipe.method == "calibrated":
        assert calibration is not None
        batches = _calibration_inputs(source, calibration)
    for stack in STACKS:
        own = _within(schemes, stack)
        if own:
            _quantize_stack(source, stack, own, recipe, batches.get(stack), staging)
    for path in (path for path in schemes if not any(path.startswith(f"{stack}/") for stack in STACKS)):
        if not staging.file(path).exists():
            kernel = source.leaves.open(path).read().astype(np.float32)
            staging.save(path, {"": _quantize(kernel, schemes[path], recipe.group_size)})
    _assemble(source, out, recipe, schemes, staging)
    staging.remove()


def _open(folder: Path) -> _Source:
    root = read_json(folder / "config.json")
    if found := quantization_of(root):
        raise UserError(
            f"{folder}: already quantized (recipe {found['name']}); quantize the model that it was made from"
        )
    config = from_json(root, str(folder / "config.json"))
    stored = stored_params(folder)
    check_shapes(stored, abstract_params(config), folder / "params")
    shapes = cast("dict", traverse_util.flatten_dict(stored, sep="/"))
    return _Source(folder, root, config, shapes, StoredLeaves(folder / "params"))


def _within(schemes: dict[str, Scheme], stack: str) -> dict[str, Scheme]:
    return {path.removeprefix(f"{stack}/"): scheme for path, scheme in schemes.items() if path.startswith(f"{stack}/")}


def _calibration_inputs(source: _Source, calibration: Path) -> dict[str, list[Inputs]]:
    model = OmniVinci(source.config)
    data = read_calibration(calibration, Processor(source.config, Tokenizer(source.folder)))
    shardings = shardings_of(model, None)
    del shardings["llm"]["layers"]  # read one at a time
    params = load_params(source.folder, shardings)
    found = [jax.device_get(stack_inputs(model, params, batch)) for batch in tqdm(data, desc="calibrate", disable=None)]
    return {stack: [inputs[stack] for inputs in found] for stack in STACKS}


def _quantize_stack(
    source: _Source,
    stack: str,
    schemes: dict[str, Scheme],
    recipe: Recipe,
    batches: list[Inputs] | None,
    staging: "_Staging",
) -> None:
    count = source.shapes[f"{stack}/{next(iter(schemes))}"].shape[0]
    module, where = STACKS[stack](source.config), folds(stack, source.config)
    for index in tqdm(range(count), desc=f"quantize {stack}", unit=" layers", disable=None):
        finished = staging.file(f"{stack}/{index}").exists()
        if finished and batches is None:
            continue
        layer, seen = source.layer(stack, index), None
        if batches is not None:
            batches, seen = observe(module, traverse_util.unflatten_dict(layer, sep="/"), batches)
        if not finished:
            norms = {source.shapes[f"{stack}/{place.source}/scale"].dtype for place in where if place.after_norm}
            quantized = quantize_layer(layer, schemes, recipe.group_size, seen, where, np.dtype(norms.pop()))
            for path, leaf in quantized.items():
                if not is_quantized(leaf):
                    quantized[path] = leaf.astype(source.shapes[f"{stack}/{path}"].dtype)
            staging.save(f"{stack}/{index}", quantized)


def quantize_layer(
    layer: dict[str, np.ndarray],
    schemes: dict[str, Scheme],
    group_size: int,
    seen: dict[str, Statistics] | None = None,
    where: Iterable[Fold] = (),
    norm_dtype: np.dtype = _FLOAT32,
) -> dict[str, Any]:
    """Quantizes one layer; returns the leaves that change, by path.

    Args:
        layer: its parameters in float32, by path.
        schemes: of the kernels to quantize, by path.
        group_size: of w4a16.
        seen: what its dense layers see, by path; None rounds to nearest.
        where: the folds that AWQ (w4a16) and SmoothQuant (w8a8, after norms) may use.
        norm_dtype: the type in which norms are stored.
    """
    original, layer, clips = layer, dict(layer), {}
    if seen is not None:
        seen = dict(seen)
        for place in where:
            _rescale(layer, place, schemes, group_size, seen, norm_dtype)
        for path, scheme in schemes.items():
            dense = path.removesuffix("/kernel")
            # Clipping q and k harms attention (AWQ).
            if scheme == "w4a16" and not dense.endswith(("q_proj", "k_proj")):
                clips[path] = best_clip(seen[dense].sample, layer[path], group_size)
    changed: dict[str, Any] = {path: leaf for path, leaf in layer.items() if leaf is not original[path]}
    for path, scheme in schemes.items():
        changed[path] = jax.device_get(_quantize(layer[path], scheme, group_size, clips.get(path)))
    return changed


def _rescale(
    layer: dict[str, np.ndarray],
    place: Fold,
    schemes: dict[str, Scheme],
    group_size: int,
    seen: dict[str, Statistics],
    norm_dtype: np.dtype,
) -> None:
    """Chooses the scales of one fold, and changes the layer and what its dense layers see."""
    targets = [target for target in place.targets if f"{target}/kernel" in schemes]
    if not targets:
        return
    scheme, statistics = schemes[f"{targets[0]}/kernel"], seen[targets[0]]
    if scheme == "fp8" or (scheme == "w8a8" and not place.after_norm):
        return
    kernels = [layer[f"{target}/kernel"] for target in targets]
    candidates = awq_candidates(statistics) if scheme == "w4a16" else smooth_candidates(statistics, kernels)
    scales = best_scales(candidates, statistics.sample, kernels, scheme, group_size)
    if place.after_norm:  # exact for the norm as it is stored
        norm = layer[f"{place.source}/scale"]
        stored = (norm / scales).astype(norm_dtype).astype(np.float32)
        scales = np.divide(norm, stored, out=scales, where=stored != 0)
    layer |= traverse_util.flatten_dict(fold(traverse_util.unflatten_dict(layer, sep="/"), place, scales), sep="/")
    for target in place.targets:
        seen[target] = Statistics(*(value / scales for value in seen[target]))


class _Staging:
    """Finished layers in a folder beside the result, one file each, for a killed run to resume."""

    def __init__(self, source: _Source, out: Path, recipe: Recipe, calibration: Path | None):
        self._folder = out.absolute().with_name(f".{out.name}.layers")
        inputs = [source.folder / "params" / "_METADATA", *([calibration] if calibration else [])]
        states = [(str(path.absolute()), path.stat().st_mtime_ns) for path in inputs if path.exists()]
        key = json.dumps([recipe.to_json(), states])
        settings = self._folder / "settings.json"
        if not settings.exists() or settings.read_text() != key:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            settings.write_text(key)

    def file(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '.')}.npz"

    def save(self, name: str, changed: dict[str, Any]) -> None:
        """Writes the changed leaves of a layer as bytes, because NumPy's files do not know every type."""
        arrays = {}
        for path, leaf in changed.items():
            named = {"/values": leaf.values, "/scales": leaf.scales} if is_quantized(leaf) else {"": leaf}
            arrays |= {path + suffix: np.ascontiguousarray(array).view(np.uint8) for suffix, array in named.items()}
        with atomic_file(self.file(name)) as part, open(part, "wb") as file:
            np.savez(file, **arrays)

    def names(self, name: str) -> set[str]:
        with np.load(self.file(name)) as saved:
            return set(saved.files)

    def load(self, name: str, path: str, dtype: np.dtype) -> np.ndarray:
        with np.load(self.file(name)) as saved:
            return saved[path].view(dtype)

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def _assemble(source: _Source, out: Path, recipe: Recipe, schemes: dict[str, Scheme], staging: _Staging) -> None:
    """Writes the model directory from the finished layers and the unchanged leaves."""
    lazy: dict[str, LazyLeaf] = {}
    for path, shape in source.shapes.items():
        stack = next((stack for stack in STACKS if path.startswith(f"{stack}/")), None)
        if path in schemes:
            make = partial(quantize, scheme=schemes[path], group_size=recipe.group_size)
            abstract: QuantizedArray = jax.eval_shape(make, shape)
            for name, leaf in (("values", abstract.values), ("scales", abstract.scales)):
                lazy[f"{path}/{name}"] = _finished(staging, stack, path, f"/{name}", leaf)
        elif stack and _changed(staging, schemes, stack, path):
            lazy[path] = _finished(staging, stack, path, "", shape)
        else:
            lazy[path] = LazyLeaf(shape.shape, np.dtype(shape.dtype), lambda path=path: _copy(source.leaves.open(path)))
    with atomic_directory(out, replace=False) as part:
        part = Path(part)
        leaves.save(part / "params", lazy)
        untrained = untrained_modules(source.root)
        write_config(source.config, part / "config.json", source.root, untrained, recipe.to_json())
        for name in FILES:
            if (source.folder / name).is_file():
                shutil.copy(source.folder / name, part / name)


def _changed(staging: _Staging, schemes: dict[str, Scheme], stack: str, path: str) -> bool:
    return bool(_within(schemes, stack)) and path.removeprefix(f"{stack}/") in staging.names(f"{stack}/0")


def _finished(staging: _Staging, stack: str | None, path: str, suffix: str, leaf: Any) -> LazyLeaf:
    dtype = np.dtype(leaf.dtype)

    def pieces() -> Pieces:
        if stack is None:
            yield None, staging.load(path, suffix, dtype)
            return
        for index in range(leaf.shape[0]):
            yield index, staging.load(f"{stack}/{index}", path.removeprefix(f"{stack}/") + suffix, dtype)

    return LazyLeaf(tuple(leaf.shape), dtype, pieces)


def _copy(leaf: StoredLeaf) -> Pieces:
    if len(leaf.shape) < 3:
        yield None, leaf.read()
    else:
        yield from ((index, leaf.read(index)) for index in range(leaf.shape[0]))
