"""The mesh of a command."""

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh


def flag_mesh(arguments: Namespace) -> "Mesh | None":
    """Makes the mesh of --mesh; returns None without it. For the errors see `text_mesh`."""
    return text_mesh(arguments.mesh) if arguments.mesh else None


def text_mesh(text: str) -> "Mesh":
    """Makes the mesh of a text such as "data=1,tensor=4"; raises ConfigError."""
    from omnivinci_jax.mesh.mesh import make_mesh
    from omnivinci_jax.settings import parse_mesh

    return make_mesh(parse_mesh(text))
