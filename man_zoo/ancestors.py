"""What started this process, seen before torch takes seconds to load: it may be gone by then."""

import os

import psutil

SWEEP = "MAN_ZOO_SWEEP"  # the id of the sweep's process, for those that it starts
_at_start: list[int]


def ancestors() -> list[int]:
    """The ids of this process's parent and, in a sweep, of all from there up to the sweep."""
    sweep = int(os.environ.get(SWEEP, 0))
    if not sweep:
        return [os.getppid()]
    try:
        parents = [parent.pid for parent in psutil.Process().parents()]
    except psutil.NoSuchProcess:  # one ended meanwhile
        return ancestors()
    # Not an ancestor where the launcher starts processes elsewhere, e.g. by srun.
    return parents[: parents.index(sweep) + 1 if sweep in parents else 1]


def at_start() -> list[int]:
    """Those that this process had when it loaded man_zoo, or was forked from one that has."""
    return _at_start


def _look() -> None:
    global _at_start
    _at_start = ancestors()


_look()
os.register_at_fork(after_in_child=_look)
