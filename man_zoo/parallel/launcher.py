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

import psutil
import torch

from .ending import end

SWEEP = "MAN_ZOO_SWEEP"  # the id of the sweep's process, for those that it starts
# Set by torchrun and by accelerate launch, for one process and for several.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
_EVERY = 1.0  # seconds between looks at the ancestors


def end_with_launcher(go_on: str, is_ending: Callable[[], bool]) -> None:
    """From here on this process ends with what started it, in one sentence on standard error.

    It ends when its launcher or sweep has gone, and when it finds another process of its run gone.
    Nothing happens in a process that neither started: one that a shell started outlives it.

    Args:
        go_on: What to do then, e.g. ``go on with --resume runs/first``; ends the sentence.
        is_ending: Whether this process ends by itself, and should be let.
    """
    if not any(name in os.environ for name in (SWEEP, *LAUNCHERS)):
        return
    _say_of_lost_peers(go_on)
    watch = threading.Thread(target=_watch, args=(go_on, _ancestors(), is_ending), daemon=True)
    watch.start()


def _ancestors() -> list[int]:
    """The ids of this process's parent and, in a sweep, of all from there up to the sweep."""
    try:
        parents = [parent.pid for parent in psutil.Process().parents()]
    except psutil.NoSuchProcess:  # one ended meanwhile
        return _ancestors()
    sweep = int(os.environ.get(SWEEP, 0))
    # Not an ancestor where the launcher starts processes elsewhere, e.g. by srun.
    return parents[: parents.index(sweep) + 1 if sweep in parents else 1]


def _watch(go_on: str, ancestors: list[int], is_ending: Callable[[], bool]) -> NoReturn:
    # A dead ancestor is replaced by the process that inherits its children.
    while _ancestors() == ancestors or is_ending():
        time.sleep(_EVERY)
    end(f"the launcher or sweep that started this process has gone; {go_on}", 1)


def _say_of_lost_peers(go_on: str) -> None:
    """Let an uncaught error of a collective with a dead process be a sentence."""
    usual = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        end_if_of_lost_peer(error, go_on)
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
