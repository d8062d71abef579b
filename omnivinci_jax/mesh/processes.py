"""Multi-process runs: one process per host, joined by jax.distributed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from omnivinci_jax.errors import ConfigError, Preempted, UserError
from omnivinci_jax.paths import absolute, as_user_error, is_remote

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Joins the other processes of this run. Call it before anything else uses a jax device.

    Reads JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, which the scripts in
    launch/ set. TPU pods need none of them: jax finds the processes itself.

    Raises:
        ConfigError: some of the variables are missing or not numbers, or other processes do not answer.
    """
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    try:
        if not given:
            jax.distributed.initialize()
        else:
            address, count, process = (given[name] for name in _VARIABLES)
            jax.distributed.initialize(address, int(count), int(process), cluster_detection_method="deactivate")
    except KeyError as error:
        raise ConfigError(f"--distributed: {error.args[0]} is not set, but {', '.join(given)} is") from None
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed: {str(error).splitlines()[0]} (set {', '.join(_VARIABLES)}, or use a script in launch/)"
        ) from None


def is_main() -> bool:
    """Returns whether this is the one process that writes metrics, reports and configurations."""
    return jax.process_index() == 0


def check_same(what: str, digest: str) -> None:
    """Raises ConfigError unless all processes have the same SHA-256 `digest` of `what`."""
    if jax.process_count() > 1:
        local = np.frombuffer(bytes.fromhex(digest), np.uint8)
        if (multihost_utils.process_allgather(local) != local).any():
            raise ConfigError(f"{what} differ between processes: give every host the same readable files")


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def lost_process_as_preempted() -> Iterator[None]:
    """Turns the error that a lost process causes in a computation into Preempted."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        notice = f"another process was lost ({reason}); start the same command again to resume from the last checkpoint"
        raise Preempted(notice) from None


@contextmanager
def atomic_directory(folder: epath.PathLike, *, replace: bool) -> Iterator[epath.Path]:
    """Yields a directory to fill; it becomes `folder` when the block ends, and is deleted if the block raises.

    All processes enter the block, and process 0 moves the directory. A bucket cannot move directories, so the block
    gets `folder` itself, emptied first, and `folder` is incomplete until the block ends.

    Args:
        folder: the directory to create.
        replace: whether to replace an existing directory.

    Raises:
        UserError: `folder` exists and `replace` is false, or it cannot be written.
    """
    folder = absolute(folder)
    if not replace and folder.exists():
        raise UserError(f"{folder}: already exists; nothing was overwritten")
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    if is_remote(folder):
        part = folder
    with as_user_error(folder):
        try:
            if is_main():
                for leftover in (part, old):
                    if leftover.exists():
                        leftover.rmtree()
                part.mkdir(parents=True)
            barrier("directory begun")
            yield part
            if is_main() and part != folder:
                if folder.exists():
                    folder.rename(old)
                part.rename(folder)
                if old.exists():
                    old.rmtree()
        except BaseException:
            if is_main() and part.exists():
                part.rmtree()
            raise
        barrier("directory whole")
