"""Runs test programs on several virtual CPU devices."""

import os
import subprocess
import sys

from tests.tiny import REPOSITORY, virtual_devices


def run_on_devices(count: int, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m *arguments` on `count` virtual devices, with more environment variables; fails if it fails."""
    # With few cores, collectives of two concurrent programs can deadlock.
    environment = os.environ | virtual_devices(count) | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0"} | variables
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done
