"""Shared by all tests: types checked at run time, absl's flags parsed, and the recorded outputs."""

from pathlib import Path

import pytest
from absl import flags
from jaxtyping import install_import_hook

from tests import typecheck

# Checks the arguments and results of every function in these packages, shapes included, when a test calls it.
install_import_hook(["omnivinci_jax", "conversion"], f"{typecheck.__name__}.check")
flags.FLAGS.mark_as_parsed()  # Grain's workers read them

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded outputs of the reference, beside the repository."""
    folder = REPOSITORY.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"the recorded reference outputs are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def av_world(tmp_path_factory) -> Path:
    """A small av_world: train.jsonl, val.jsonl, held_out.jsonl and their clips. Nobody changes it."""
    from omnivinci_jax.av_world.generate import generate

    folder = tmp_path_factory.mktemp("av_world")
    generate(folder, seed=7, train_clips=10, val_clips=2, held_out_clips=2, workers=1)
    return folder
