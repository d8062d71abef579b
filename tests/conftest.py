"""Shared by all tests: run-time type checks, the compilation cache, absl flags, data, and test order."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from absl import flags
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

from tests import typecheck

# Checks arguments and results of every function, shapes included.
_PACKAGES = (
    "config",
    "config_json",
    "data",
    "downstream",
    "data_engine",
    "evaluation",
    "generate",
    "leaves",
    "media",
    "mesh",
    "model_dir",
    "models",
    "part_json",
    "paths",
    "planning",
    "quantize",
    "rl",
    "run",
    "sequence",
    "serve",
    "settings",
    "speech",
    "train",
    "transcription",
)
install_import_hook(
    [*(f"omnivinci_jax.{package}" for package in _PACKAGES), "conversion"], f"{typecheck.__name__}.check"
)
# Types alone: most of its functions take scalars, and the audit calls them a million times.
beartype_package("omnivinci_jax.av_world", conf=typecheck.CONF)
flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags

REPOSITORY = Path(__file__).parents[1]

# Tests, and the commands that they start, compile without optimizations, which takes a fifth of the time. `make
# check-optimized` compares with the reference under XLA's defaults.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# Shared by all workers and by the programs that tests start. `make clean` deletes it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / "runs" / "cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# The slowest files run first, so that the workers finish together.
LONGEST = (
    "end_to_end/test_processes.py",
    "end_to_end/test_train.py",
    "multidevice/test_meshes.py",
    "end_to_end/test_four_processes.py",
    "end_to_end/test_bucket.py",
    "train/test_stages.py",
    "rl/test_grpo.py",
    "end_to_end/test_finetune_page.py",
    "end_to_end/test_start_from.py",
    "multidevice/test_generate.py",
    "end_to_end/test_ablate.py",
    "conversion/test_round_trip.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sends all tests of a file to one worker, which shares their fixtures, unless they name a group."""

    def order(item: pytest.Item) -> int:
        name = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=order)
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(REPOSITORY).as_posix()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes lone surrogates in reports, which pytest-xdist cannot send."""
    report = yield
    report.sections = [(name, _escaped(text)) for name, text in report.sections]
    if isinstance(report.longrepr, tuple):  # a skip: file, line and reason
        return report
    text = str(report.longrepr or "")
    if text != _escaped(text):
        report.longrepr = _escaped(text)
    return report


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def golden() -> Path:
    """The reference's recorded outputs, beside the repository."""
    folder = REPOSITORY.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"the recorded reference outputs are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def av_world(tmp_path_factory) -> Path:
    """A small av_world: train.jsonl, val.jsonl, held_out.jsonl and their clips. Read-only."""
    from omnivinci_jax.av_world.generate import generate

    folder = tmp_path_factory.mktemp("av_world")
    generate(folder, seed=7, train_clips=10, val_clips=2, held_out_clips=2, workers=1)
    return folder
