"""Reads and writes PyTorch checkpoints: `load`, and the commands from_torch, to_torch, to_peft and verify."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.typing import DTypeLike

    from omnivinci_jax.generate.assistant import Assistant


def load(folder: str | Path, dtype: "DTypeLike | None" = None, mesh: "Mesh | None" = None) -> "Assistant":
    """Loads a PyTorch checkpoint in either layout, as `omnivinci_jax.load` loads a model directory.

    Args:
        folder: the checkpoint and its tokenizer.
        dtype: of activations, float32 if None; parameters keep their stored type.
        mesh: devices to shard the parameters over.

    Raises:
        UserError: a missing, damaged or unknown tensor or file; the message names the key and the file.
    """
    from conversion.loading import load

    return load(Path(folder), dtype, mesh)
