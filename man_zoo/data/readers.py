"""Processes that read images, and SIGTERM, which a batch system sends to them too."""

import os
import signal
import threading
from typing import Any

from torch.utils.data import DataLoader


class Readers(DataLoader):
    """A ``DataLoader`` whose workers end with SIGTERM from their own process, and from no other.

    A run that is asked to stop needs its next batch first. Workers are born with the signal held
    back: one that comes before they are ready would end them.
    """

    def __init__(self, dataset: Any, **settings: Any) -> None:
        super().__init__(dataset, worker_init_fn=_end_with_own_process, **settings)

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_own_process(worker: int) -> None:
    # A worker that heeds nobody would keep a process that has failed from its end.
    threading.Thread(target=_wait, args=(os.getppid(),), daemon=True).start()


def _wait(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
