"""PyTorch checkpoints in and out: `load`, and the commands from_torch, to_torch and verify."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.typing import DTypeLike

    from omnivinci_jax.generate.assistant import Assistant


def load(folder: str | Path, dtype: "DTypeLike | None" = None, mesh: "Mesh | None" = None) -> "Assistant":
    """Loads a PyTorch checkpoint in either layout as `omnivinci_jax.load` loads a model directory.

    Args:
        folder: the checkpoint, with its tokenizer.
        dtype: of activations, float32 where it is None; parameters keep the type that they are stored in.
        mesh: shards the parameters over devices.

    Raises:
        UserError: what is missing, damaged or unknown, with its key and file.
    """
    from conversion.loading import load

    return load(Path(folder), dtype, mesh)
