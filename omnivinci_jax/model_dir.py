"""Model directories: config.json, the tokenizer's files and params/ (Orbax)."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import read_config, write_config
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import UserError, describe
from omnivinci_jax.mesh.processes import atomic_directory, is_main
from omnivinci_jax.mesh.rules import parameter_shardings
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.initialization import abstract_boxes, abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.quantized import QuantizedArray, as_dicts, from_dicts, is_quantized
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.tokenizer import Tokenizer

CHUNK_BYTES = 256 * 2**20


class LoadedModel(NamedTuple):
    """The Flax module, its parameters as a plain dict, and the processor that turns conversations into rows."""

    model: OmniVinci
    params: dict
    processor: Processor

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of the parameters; None if they are on one device."""
        sharding = jax.tree.leaves(self.params)[0].sharding
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        return mesh if isinstance(mesh, Mesh) else None


def load(folder: epath.PathLike, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None) -> LoadedModel:
    """Loads a model directory.

    Args:
        folder: the directory.
        dtype: of activations; parameters keep their stored type.
        mesh: shards the parameters, and each device reads only its shard; None puts them on the first device.

    Raises:
        UserError: a file or parameter is missing or contradicts config.json; the mesh does not divide a parameter.
    """
    folder = epath.Path(folder)
    tokenizer = Tokenizer(folder)
    model, params = load_model(folder, dtype, mesh)
    return LoadedModel(model, params, Processor(model.config, tokenizer))


def load_model(
    folder: epath.PathLike, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> tuple[OmniVinci, dict]:
    """Like `load`, but without the tokenizer, for callers with token ids: returns the module and its parameters."""
    folder = epath.Path(folder)
    model = OmniVinci(read_config(folder / "config.json"), Compute(dtype=dtype))
    check_shapes(stored_params(folder), abstract_params(model.config), folder / "params")
    return model, load_params(folder, shardings_of(model, mesh))


def shardings_of(model: OmniVinci, mesh: Mesh | None) -> dict:
    """Returns the sharding of each parameter: from mesh/rules.py, or the first device without a mesh.

    Raises:
        ConfigError: the mesh does not divide a parameter.
    """
    if mesh:
        return cast("dict", parameter_shardings(abstract_boxes(model.config), mesh))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: device, abstract_params(model.config))


def quantized_sharding(sharding: Sharding) -> QuantizedArray:
    """Returns the shardings of a quantized kernel's arrays, from the kernel's; scales replicate along the inputs."""
    if not isinstance(sharding, NamedSharding):
        return QuantizedArray(sharding, sharding)
    *stack, rows, columns = sharding.spec
    specs = PartitionSpec(*stack, columns, rows), PartitionSpec(*stack, columns, None)
    return QuantizedArray(*(NamedSharding(sharding.mesh, spec) for spec in specs))


def load_params(folder: epath.PathLike, shardings: dict) -> dict:
    """Loads the parameters of a model directory that are in `shardings`, in their stored types.

    Raises:
        UserError: they are damaged, or hold values that are not finite.
    """
    stored = cast("dict[tuple[str, ...], Any]", traverse_util.flatten_dict(stored_params(folder)))

    def place(leaf: Any, sharding: Any) -> Any:
        if is_quantized(leaf) and not is_quantized(sharding):
            sharding = quantized_sharding(sharding)
        return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), leaf, sharding)

    flat = cast("dict[tuple[str, ...], Any]", traverse_util.flatten_dict(shardings))
    shapes = as_dicts(
        traverse_util.unflatten_dict({path: place(stored[path], sharding) for path, sharding in flat.items()})
    )
    restore = ocp.args.PyTreeRestore(
        shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes), partial_restore=True
    )
    path = absolute(folder) / "params"
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            params = checkpointer.restore(path, restore)
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        raise _damaged(path, error) from None
    check_finite(params, path)
    return from_dicts(params)


def stored_params(folder: epath.PathLike) -> dict:
    """Returns shapes and types of a model directory's parameters, quantized arrays among them.

    Raises:
        UserError: there are none to read.
    """
    path = absolute(folder) / "params"
    if not (path / "_METADATA").is_file():
        raise UserError(f"{path}: no parameters (no Orbax checkpoint)")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
    except Exception as error:  # as in `load_params`
        raise _damaged(path, error) from None
    return from_dicts(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), tree))


def check_finite(params: Any, where: epath.PathLike) -> None:
    """Raises UserError, naming the first such array, if a tree of arrays holds values that are not finite."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not leaves:
        return
    on_cpu = jax.default_backend() == "cpu"
    check = are_finite_on_host if on_cpu else are_finite
    for (path, _), is_finite in zip(leaves, check([leaf for _, leaf in leaves]), strict=True):
        if not is_finite:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{where}: {name} holds values that are not finite: the files are damaged")


@jax.jit
def are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    """Returns whether all values of each array are finite."""
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def are_finite_on_host(leaves: list[jax.Array]) -> list[bool]:
    """Like `are_finite`, for arrays that NumPy sees without a copy; compiling takes seconds. Checks local shards."""

    def is_finite(leaf: jax.Array) -> bool:
        shards = (np.asarray(shard.data) for shard in leaf.addressable_shards if not shard.replica_id)
        return all(np.isfinite(part).all() for shard in shards for part in np.atleast_1d(shard))

    return [is_finite(leaf) for leaf in leaves]


def _damaged(path: epath.Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged or cut short: the parameters cannot be read ({describe(error)})")


def check_shapes(stored: dict, expected: dict, where: epath.PathLike, expected_by: str = "config.json") -> None:
    """Raises UserError, naming the parameter, unless both trees have the same leaves of the same shapes."""
    stored, expected = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in map(lambda tree: jax.tree_util.tree_flatten_with_path(tree, is_quantized)[0], (stored, expected))
    )
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            raise UserError(
                f"{where}: {name} has shape {stored.get(name, 'none (it is missing)')}, but {expected_by} expects "
                f"{expected.get(name, 'none')}"
            )


def in_modules(path: str, modules: Iterable[str]) -> bool:
    """Returns whether a parameter ("omni_align/vision/query") belongs to one of the modules ("omni_align")."""
    return any(path == module or path.startswith(f"{module}/") for module in modules)


def save(
    folder: epath.PathLike,
    config: OmniVinciConfig,
    params: dict,
    tokenizer: Tokenizer,
    untrained: Iterable[str] = (),
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model directory; replaces an existing one once the new one is complete.

    Args:
        folder: the directory.
        config: the model.
        params: all its parameters.
        tokenizer: its files are copied.
        untrained: modules that were initialised and never trained; exports leave them out.
        quantization: how the parameters were quantized.
    """
    with atomic_directory(folder, replace=True) as part:
        if is_main():
            write_config(config, part / "config.json", untrained=untrained, quantization=quantization)
            tokenizer.copy_files(part)
        save_params(part, params)


def save_params(folder: epath.Path, params: dict) -> None:
    """Writes parameters into the directory of an `atomic_directory` block; raises OSError if that fails."""

    # One chunk per slice of stacked layers, so that an export reads one slice at a time.
    def chunks(leaf: jax.Array) -> ocp.SaveArgs:
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if leaf.ndim else ())

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = as_dicts(params)
            checkpointer.save(folder / "params", params, save_args=jax.tree.map(chunks, params))
    except ValueError as error:  # TensorStore's error for a full disk
        raise OSError(str(error)) from error
