"""OmniVinci in JAX: train, evaluate and convert an omni-modal language model."""

from typing import Any

from omnivinci_jax.sequence.chat import Media as Media


def __getattr__(name: str) -> Any:
    """Imports `load` on first use, so that loader workers and the command line start without jax."""
    if name == "load":
        from omnivinci_jax.generate.assistant import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
