"""Sides of a comparison in processes of their own, which work by turns."""

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
    """A side in a process of its own, which works only while it is asked to."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        """Starts the process and waits until `make(*arguments)`, called there, has made the side."""
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        context.Process(target=_work, args=(make, arguments, remote), daemon=True).start()
        remote.close()
        self.version = self._connection.recv()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the side returns."""
        self._connection.send((method, arguments))
        return self._connection.recv()

    def seconds(self, program: str) -> float:
        """Runs one of the side's programs once."""
        return self.ask("seconds", program)


def _work(make: Callable[..., Any], arguments: tuple, connection: Connection) -> None:
    side, programs = make(*arguments), {}
    connection.send(side.version)
    while question := _receive(connection):
        method, arguments = question
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
    """Gives processes that are yet to start the allocator's settings of launch/xla_flags.sh; returns them."""
    tunables = subprocess.run(
        ["bash", "-c", ". launch/xla_flags.sh cpu && echo -n $GLIBC_TUNABLES"],
        capture_output=True,
        text=True,
        check=True,
    )
    os.environ["GLIBC_TUNABLES"] = tunables.stdout
    return tunables.stdout


def processor() -> str:
    """The processor's name and cores."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", file.read_text()) if file.exists() else None
    return f"{os.cpu_count()} cores of {found[1] if found else platform.processor()}"


def line(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
