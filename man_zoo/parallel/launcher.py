"""What a launcher or a sweep has started ends when they do, and says how to go on.

``torchrun`` starts its processes in sessions of their own, ``accelerate launch`` and ``man-zoo
sweep`` wait for theirs: killed, none of them takes its processes along, and those would train on
unseen and hold their run. So a process looks at its ancestors once a second. A thread that looks
needs no more than a process tree: Linux could send a signal instead (``PR_SET_PDEATHSIG``), but
Linux alone, only from the direct parent, and also when no more than the parent's *thread* ends.
"""

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import psutil
import torch

SWEEP = "MAN_ZOO_SWEEP"  # the id of the sweep's process, for those that it starts
# Set by torchrun and by accelerate launch, for one process and for several.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
_STDERR = 2
_EVERY = 1.0  # seconds between looks at the ancestors


def end_with_launcher(go_on: str) -> None:
    """From here on this process ends with what started it, in one sentence on standard error.

    It ends when its launcher or sweep has gone, when the launcher sends SIGTERM, as torchrun does
    to the others when one process has died, and when it finds another process of its run gone.
    Nothing happens in a process that neither started: one that a shell started outlives it.

    Args:
        go_on: What to do then, e.g. ``go on with --resume runs/first``; ends the sentence.
    """
    if not any(name in os.environ for name in (SWEEP, *LAUNCHERS)):
        return
    _say_of_lost_peers(go_on)
    watch = threading.Thread(target=_watch, args=(go_on, _ancestors(), _signals()), daemon=True)
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


def _signals() -> int:
    """A pipe that tells of SIGTERM.

    A plain handler would not do: it waits until the main thread is back from a collective, and one
    with a dead process may never end.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.register_at_fork(after_in_child=_forget_signals)
    return told


def _forget_signals() -> None:
    """Loaders' processes take SIGTERM for themselves, and tell nobody."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch(go_on: str, ancestors: list[int], signals: int) -> NoReturn:
    # A dead ancestor is replaced by the process that inherits its children.
    while _ancestors() == ancestors:
        ready, _, _ = select.select([signals], [], [], _EVERY)
        if ready and signal.SIGTERM in os.read(signals, 1024):
            why = "ended by SIGTERM, which a launcher also sends when another process has died"
            _end(f"{why}; {go_on}", 128 + signal.SIGTERM)
    _end(f"the launcher or sweep that started this process has gone; {go_on}", 1)


def _say_of_lost_peers(go_on: str) -> None:
    """Let an uncaught error of a collective with a dead process be a sentence."""
    usual = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if _is_of_lost_peer(error):
            _end(f"another process of this run has died or does not answer; {go_on}", 1)
        usual(kind, error, traceback)

    sys.excepthook = hook


def _is_of_lost_peer(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistNetworkError):
        return True
    # gloo raises plain RuntimeErrors that name its sources; NCCL's other errors are no lost peers.
    names = ("/gloo/", "ncclRemoteError")
    return isinstance(error, RuntimeError) and any(name in str(error) for name in names)


def _end(sentence: str, status: int) -> NoReturn:
    """End at once: the main thread may wait for a process that has died."""
    if _is_first_to_speak():
        line = f"\n{Path(sys.argv[0]).name}: {sentence}.\n"
        with suppress(OSError):  # who would have read it has gone too
            os.write(_STDERR, line.encode())  # no lock that another thread holds
    os._exit(status)


def _is_first_to_speak() -> bool:
    """Whether no process beside this one has spoken, as told by torchrun's folder for errors."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    try:
        if file:
            Path(file).parents[1].joinpath("said").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the folder has gone with the launcher
        return True
    return True
