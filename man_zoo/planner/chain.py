"""The chain of runs, one a process, whose slowest run is fastest: dynamic programming."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .sizes import GIB

Chain = tuple["Run", ...]


@dataclass(frozen=True)
class Run:
    """Consecutive blocks that one process may be given.

    Args:
        start: The first block; the first unit where the cuts are free.
        stop: The first that is not in the run.
        k: How many blocks it has.
        work: Seconds of one batch, or arithmetic.
        bytes: Most bytes alive in the process.
        cuts: Last units of its blocks, where the cuts are free.
    """

    start: int
    stop: int
    k: int
    work: float
    bytes: int
    cuts: tuple[int, ...] = ()


def each_limit(limits: Sequence[int], processes: int) -> tuple[float, ...]:
    """The limit of every process, in bytes; infinite without one.

    Raises:
        ValueError: Unless there is one for every process, one for all, or none.
    """
    if len(limits) not in (0, 1, processes):
        raise ValueError(
            f"{len(limits)} limits of memory were given for {processes} processes; give one for "
            f"all, or {processes}."
        )
    return tuple(limits or [math.inf]) * (processes // max(len(limits), 1))


def fastest(runs: Iterable[Run], k: int, stop: int, limits: Sequence[float]) -> Chain | None:
    """The runs in a row whose slowest process is fastest; ``None`` if nothing fits.

    Args:
        runs: To choose from.
        k: How many blocks they have together.
        stop: Where the last one stops.
        limits: Bytes of every process.
    """
    return _least_worst(
        runs, k, stop, len(limits), lambda p, run: run.work if run.bytes <= limits[p] else math.inf
    )


def tightest(runs: Iterable[Run], k: int, stop: int, limits: Sequence[float]) -> Chain | None:
    """The same where memory is spread as well as can be, whatever is too much."""
    return _least_worst(runs, k, stop, len(limits), lambda p, run: run.bytes / limits[p])


def shortage(chain: Chain, limits: Sequence[float]) -> tuple[float, int]:
    """How many times its limit the process that is worst off needs, and which it is."""
    return max((run.bytes / limits[p], p) for p, run in enumerate(chain))


def too_little(chain: Chain, limits: Sequence[float], name: Callable[[Run], str]) -> str:
    """Which process misses its limit, as a sentence; ``name`` says what a run is made of."""
    _, p = shortage(chain, limits)
    return (
        f"{len(chain)} processes do not fit into their memory: at best process {p + 1} needs "
        f"{chain[p].bytes / GIB:.2f} GiB for {name(chain[p])} and has {limits[p] / GIB:.2f} GiB; "
        "give it more, or use a smaller batch, recomputation or other blocks."
    )


def _least_worst(
    runs: Iterable[Run],
    k: int,
    stop: int,
    processes: int,
    cost: Callable[[int, Run], float],
) -> Chain | None:
    """The chain whose largest cost is least, by process and by where its run starts."""
    runs = list(runs)
    # Of every start and number of blocks before it: the best chain up to there.
    best: dict[int, dict[int, tuple[float, Chain]]] = {0: {0: (0.0, ())}}
    for p in range(processes):
        longer: dict[int, dict[int, tuple[float, Chain]]] = {}
        for run in runs:
            own = cost(p, run)
            for before, (worst, chain) in best.get(run.start, {}).items():
                ends, blocks = longer.setdefault(run.stop, {}), before + run.k
                value = max(worst, own)
                if value < math.inf and value < ends.get(blocks, (math.inf,))[0]:
                    ends[blocks] = value, (*chain, run)
        best = longer
    return best.get(stop, {}).get(k, (math.inf, None))[1]
