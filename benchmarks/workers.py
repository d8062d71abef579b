"""Runs the sides of a comparison, each in its own process, in turns."""

import multiprocessing
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Worker:
    """One side in its own process, idle between calls."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, daemon: bool = True):
        """Starts the process and waits until it has built the side with `make(*arguments)`.

        With `daemon` False the side may have processes of its own; call `close` at the end.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        context.Process(target=_work, args=(make, arguments, remote), daemon=daemon).start()
        remote.close()
        self.version = self._connection.recv()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the side; returns its result."""
        self._connection.send((method, arguments))
        return self._connection.recv()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()

    def seconds(self, program: str) -> float:
        """Runs one of the side's programs once; returns the seconds."""
        return self.ask("seconds", program)


def _work(make: Callable[..., Any], arguments: tuple, connection: Connection) -> None:
    side, programs = make(*arguments), {}
    connection.send(side.version)
    while call := _receive(connection):
        method, arguments = call
        if method != "seconds":
            connection.send(getattr(side, method)(*arguments))
            continue
        programs = programs or side.programs()
        start = time.perf_counter()
        programs[arguments[0]]()
        connection.send(time.perf_counter() - start)


def _receive(connection: Connection) -> tuple | None:
    try:
        return connection.recv()
    except EOFError:  # the benchmark is over
        return None


def use_cpu_allocator() -> str:
    """Sets the allocator as launch/xla_flags.sh does, for processes that start later; returns the setting."""
    tunables = subprocess.run(
        ["bash", "-c", ". launch/xla_flags.sh cpu && echo -n $GLIBC_TUNABLES"],
        capture_output=True,
        text=True,
        check=True,
    )
    os.environ["GLIBC_TUNABLES"] = tunables.stdout
    return tunables.stdout


def processor() -> str:
    """Returns the number of cores and the processor's name."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", file.read_text()) if file.exists() else None
    return f"{os.cpu_count()} cores of {found[1] if found else platform.processor()}"


def line(*cells: str) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
