"""What a launcher or a sweep has started ends when they do, and says how to go on.

``torchrun`` starts its processes in sessions of their own, ``accelerate launch`` and ``man-zoo
sweep`` wait for theirs: killed, none of them takes its processes along, and those would train on
unseen and hold their run. So a process looks at its ancestors once a second. A thread that looks
needs no more than a process tree: Linux could send a signal instead (``PR_SET_PDEATHSIG``), but
Linux alone, only from the direct parent, and also when no more than the parent's *thread* ends.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import torch

from ..ancestors import SWEEP, ancestors, at_start
from .ending import end

# Set by torchrun and by accelerate launch, for one process and for several.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
_EVERY = 1.0  # seconds between looks at the ancestors


class LauncherWatch:
    """Lets this process end with what started it, in one sentence on standard error.

    It ends when its launcher or sweep has gone, were it before this, and when it finds another
    process of its run gone. Nothing happens in a process that neither started: one that a shell
    started outlives it.

    Args:
        go_on: What to do then, e.g. ``go on with --resume runs/first``; ends the sentence. It may
            be set anew as the run comes further.
        is_ending: Whether this process ends by itself, and should be let; may be set anew, too.
    """

    def __init__(self, go_on: str, is_ending: Callable[[], bool] = lambda: False) -> None:
        self.go_on, self.is_ending = go_on, is_ending
        if any(name in os.environ for name in (SWEEP, *LAUNCHERS)):
            self._say_of_lost_peers()
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> NoReturn:
        # A dead ancestor is replaced by the process that inherits its children.
        while ancestors() == at_start() or self.is_ending():
            time.sleep(_EVERY)
        end(f"the launcher or sweep that started this process has gone; {self.go_on}", 1)

    def _say_of_lost_peers(self) -> None:
        """Let an uncaught error of a collective with a dead process be a sentence."""
        usual = sys.excepthook

        def hook(
            kind: type[BaseException], error: BaseException, traceback: TracebackType | None
        ) -> None:
            end_if_of_lost_peer(error, self.go_on)
            usual(kind, error, traceback)

        sys.excepthook = hook


def end_if_of_lost_peer(error: BaseException, go_on: str) -> None:
    """End, if the error is that of a collective with a process that has died."""
    if _is_of_lost_peer(error):
        end(f"another process of this run has died or does not answer; {go_on}", 1)


def _is_of_lost_peer(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistNetworkError):
        return True
    # gloo raises plain RuntimeErrors that name its sources; NCCL's other errors are no lost peers.
    names = ("/gloo/", "ncclRemoteError")
    return isinstance(error, RuntimeError) and any(name in str(error) for name in names)
