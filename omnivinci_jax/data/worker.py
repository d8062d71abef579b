"""Worker processes that end with the process that started them. Imports no jax, so that they start fast."""

import multiprocessing.connection
import os
import signal
import threading


def live_with_parent() -> None:
    """Ties this worker's life to its parent process.

    The worker ignores SIGTERM: only the parent handles it, and may need the worker for one more step. The worker exits
    when the parent is gone, since a killed process cannot stop its workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
