"""Own reward functions in worker processes, so that one that hangs or dies does not end the run."""

import importlib
import math
import multiprocessing
import numbers
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from omnivinci_jax.data.worker import live_with_parent
from omnivinci_jax.errors import ConfigError, UserError, describe
from omnivinci_jax.sequence.references import shown

_START_SECONDS = 120.0  # to start a process and import the function's module
_SPAWN = multiprocessing.get_context("spawn")


@runtime_checkable
class Scored(Protocol):
    """What a reward function is called with, and the location of its record."""

    @property
    def prompt(self) -> str:
        """The text of the prompt."""
        ...

    @property
    def text(self) -> str:
        """The answer."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """The JSON object of the prompt."""
        ...

    @property
    def where(self) -> str:
        """File and line of the record."""
        ...


class RewardWorkers:
    """Processes that call one reward function, "module:function", with (prompt, answer, record)."""

    def __init__(self, name: str, function: str, count: int, seconds: float):
        """Starts the processes and imports the function in each; raises ConfigError if there is no such function."""
        self._name, self._function, self._seconds = name, function, seconds
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        self._count = count
        self._threads = ThreadPoolExecutor(count)
        for worker in self._threads.map(lambda _: _Worker(function), range(count)):
            self._workers.put(worker)

    def __call__(self, answers: Sequence[Scored]) -> list[float]:
        """Returns the reward of each answer; raises UserError, naming the record, if it has none."""
        return list(self._threads.map(self._reward, answers))

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown()
        while not self._workers.empty():
            self._workers.get().kill()

    def _reward(self, answer: Scored) -> float:
        worker = self._workers.get()
        try:
            value, problem = worker.call((answer.prompt, answer.text, answer.record), self._seconds)
            if problem is None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
                problem = f"returned {value!r}, not a finite number"
        finally:
            self._workers.put(worker)
        if problem is not None:
            what = f"the reward {self._name!r} ({self._function}) {problem}"
            raise UserError(f"{answer.where}: {what}, for the answer {shown(answer.text)}")
        return float(value)


class _Worker:
    """One process; it is started again if a call takes too long or ends it."""

    def __init__(self, function: str):
        self._function = function
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, self._function, list(sys.path)), daemon=True)
        self._process.start()
        theirs.close()
        ready = self._receive(_START_SECONDS)
        if ready != (True, None):
            self.kill()
            reason = ready[1] if ready else "its process did not start"
            raise ConfigError(f"the reward function {self._function!r} cannot be used: {reason}")

    def call(self, arguments: tuple, seconds: float) -> tuple[Any, str | None]:
        """Returns the result, and what went wrong, if anything."""
        self._pipe.send(arguments)
        found = self._receive(seconds)
        if found is not None:
            return found
        alive = self._process.is_alive()
        self.kill()
        self._start()
        return None, f"took more than {seconds:g} s" if alive else "ended its process"

    def _receive(self, seconds: float) -> tuple[Any, str | None] | None:
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, ConnectionError):
            self._process.join()
            return None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, name: str, path: list[str]) -> None:
    """Runs in the worker: imports the function, then answers calls until the pipe closes."""
    live_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this process
    sys.path[:] = path
    try:
        module, _, attribute = name.partition(":")
        function = getattr(importlib.import_module(module), attribute)
        pipe.send((True, None))
    except Exception as error:  # whatever the import of the user's module raises
        pipe.send((None, describe(error)))
        return
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            value = function(*arguments)
            pipe.send((value if isinstance(value, numbers.Real) else repr(value), None))
        except Exception as error:  # whatever the user's function raises
            pipe.send((None, f"raised {describe(error)}"))
