"""The processes of a sweep's runs: Ctrl-C reaches them by way of the sweep, and once."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from ..ancestors import SWEEP


class Processes:
    """Starts processes and waits for them, from several threads.

    Each has a process group of its own. In the sweep's, a terminal's Ctrl-C would reach it as well,
    but a signal sent to the sweep alone would not; and one that came twice would break off what the
    first lets a run put in order.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: set[subprocess.Popen] = set()
        self._interrupted = False

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command to its end, what it prints added to ``log``; its exit status.

        Raises:
            OSError: If it cannot be started, or the log not be written.
        """
        environment = os.environ | {SWEEP: str(os.getpid())}  # it ends with this process
        with log.open("a") as output, self._lock:
            if self._interrupted:
                return -signal.SIGINT
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.remove(process)
        return status

    def interrupt(self) -> None:
        """Ctrl-C for all that run, and for all that would."""
        with self._lock:
            self._interrupted = True
            for process in self._running:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGINT)
