"""What each block does in the updates that are looked at: its gradient, its time, its memory."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..meter import LiveBytes, tensors_of
from ..planner.sizes import MIB

GRAD_NORM, SECONDS, PEAK = "grad_norm_block", "seconds_block", "peak_mib_block"
METERED = 2  # the update that is metered: a run's first has no optimizer state yet
_OF_A_LOOK = ("norms", "seconds", "peaks")

Moment = Any  # float, in seconds, or torch.cuda.Event


@dataclass
class Look:
    """What was seen of one update, by the blocks' indices.

    Args:
        first: Whether it is the first of this process, which compiles and warms up.
    """

    first: bool
    norms: dict[int, Tensor] = field(default_factory=dict)
    turns: list[tuple[int, Moment, Moment]] = field(default_factory=list)
    peaks: dict[int, float] = field(default_factory=dict)


class Observer:
    """Gradient norms, seconds and peak memory of blocks, from a few updates of an epoch.

    Nothing waits for the device before :meth:`record`, and nothing that is trained changes.

    On CUDA, time is the device's and memory the allocator's peak. Elsewhere time is the host's and
    memory the live bytes of :class:`~man_zoo.meter.LiveBytes`: all that is resident and all that
    the blocks have used. The meter slows an update down, so it runs in the second one alone, which
    is not timed.

    Args:
        device: Where the blocks are.
        resident: Model, optimizers and whatever else lives on from update to update, for the
            meter. Empty for no meter: it does not see into compiled blocks.
        first: Index in the network of the first block that is watched.
    """

    def __init__(
        self, device: torch.device, resident: Sequence[object] = (), first: int = 0
    ) -> None:
        self.device, self.resident, self.first = device, resident, first
        self.on_cuda = device.type == "cuda"
        self.updates = 0  # of this process, and of the epoch that it goes on with
        self.warm = False
        self.update: int | None = None
        self.look: Look | None = None
        self.meter: LiveBytes | None = None
        self.metered: dict[int, float] = {}
        self.clear()

    def clear(self) -> None:
        """Be at the beginning of an epoch."""
        self.looks: list[Look] = []
        self.settled: list[dict[str, Any]] = []

    def begin(self, update: int, look: bool) -> None:
        """Called before every batch of an update.

        Args:
            update: Its number.
            look: Whether to look at it.
        """
        if update == self.update:
            return
        self.update, self.updates = update, self.updates + 1
        self.look = Look(first=not self.warm) if look else None
        self.warm = True
        if self.look is not None:
            self.looks.append(self.look)
        metered = self.updates == METERED and self.resident and not self.on_cuda
        self.meter = LiveBytes().track(self._here()) if metered else None

    def _here(self) -> list[Tensor]:
        """What is resident, but for blocks that other processes have."""
        return [tensor for tensor in tensors_of(self.resident) if not tensor.is_meta]

    def watch(self, functions: Sequence[Callable[..., Any]]) -> list[Any]:
        """The functions, one a block from the first on, each run of which is in its turn."""
        return [partial(self._run, j, function) for j, function in enumerate(functions)]

    def _run(self, j: int, function: Callable[..., Any], *args: Any) -> Any:
        with self.turn(j):
            return function(*args)

    @contextmanager
    def turn(self, j: int) -> Iterator[None]:
        """Within, block j (from 0, of these) has a turn: its forward, backward or update."""
        j += self.first
        if self.meter is not None:
            with self.meter:
                self.meter.reset_peak()
                yield
            self.metered[j] = max(self.metered.get(j, 0), self.meter.peak / MIB)
        elif self.look is None:
            yield
        else:
            if self.on_cuda:
                torch.cuda.reset_peak_memory_stats(self.device)
            begun = self._now()
            yield
            self.look.turns.append((j, begun, self._now()))
            if self.on_cuda:
                peak = torch.cuda.max_memory_allocated(self.device) / MIB
                self.look.peaks[j] = max(self.look.peaks.get(j, 0), peak)

    def grad_norm(self, j: int, norm: Tensor) -> None:
        """Take the norm of block j's whole gradient, unscaled and not yet clipped."""
        if self.look is not None:
            self.look.norms[self.first + j] = norm

    def record(self) -> dict[str, float]:
        """What was seen of the epoch. Waits for the device.

        Returns:
            For the blocks seen, counted from 1: ``grad_norm_block1``, the mean over the updates
            looked at, but for those that a gradient scaler skipped; ``seconds_block1``, the mean
            of an update, forward, backward and update of all its batches; ``peak_mib_block1``, the
            largest. A process's first update has a say in time and memory only where there is no
            other.
        """
        self._settle()
        looks = self.settled
        steady = [look for look in looks if look["seconds"] and not look["first"]] or looks
        return {
            **_of_blocks(GRAD_NORM, fmean, [look["norms"] for look in looks]),
            **_of_blocks(SECONDS, fmean, [look["seconds"] for look in steady]),
            **_of_blocks(PEAK, max, [self.metered, *(look["peaks"] for look in steady)]),
        }

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`record` would tell of now, as pickle can hold it. Waits for the device."""
        self._settle()
        return {"updates": self.updates, "settled": self.settled, "metered": self.metered}

    def load_state_dict(self, state: dict[str, Any], blocks: int) -> None:
        """Go on from a state, or from several in one.

        Args:
            state: Maybe of other blocks too, which are left out.
            blocks: Index in the network of the first block that comes after those watched.
        """
        own = range(self.first, blocks)
        self.updates, self.metered = state["updates"], _only(own, state["metered"])
        self.settled = [
            {"first": look["first"], **{key: _only(own, look[key]) for key in _OF_A_LOOK}}
            for look in state["settled"]
        ]

    def _settle(self) -> None:
        """Turn looks into numbers."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        for look in self.looks:
            norms = {j: norm.item() for j, norm in look.norms.items()}
            self.settled.append(
                {
                    "first": look.first,
                    "norms": {j: norm for j, norm in norms.items() if isfinite(norm)},
                    "seconds": _sums(look.turns),
                    "peaks": look.peaks,
                }
            )
        self.looks = []

    def _now(self) -> Moment:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _sums(turns: Iterable[tuple[int, Moment, Moment]]) -> dict[int, float]:
    """Seconds of every block's turns together."""
    seconds: dict[int, float] = {}
    for j, begun, ended in turns:
        took = ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1e3
        seconds[j] = seconds.get(j, 0) + took
    return seconds


def _of_blocks(
    name: str, reduce: Callable[[list[float]], float], looks: Iterable[Mapping[int, float]]
) -> dict[str, float]:
    known = defaultdict(list)
    for look in looks:
        for j, value in look.items():
            known[j].append(value)
    return {f"{name}{j + 1}": reduce(values) for j, values in sorted(known.items())}


def _only(blocks: range, known: Mapping[int, float]) -> dict[int, float]:
    return {j: value for j, value in known.items() if j in blocks}


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of those of processes that have each their own blocks."""
    of_updates = zip(*(state["settled"] for state in states), strict=True)
    return {
        "updates": states[0]["updates"],
        "metered": _union(state["metered"] for state in states),
        "settled": [
            {
                "first": looks[0]["first"],
                **{key: _union(look[key] for look in looks) for key in _OF_A_LOOK},
            }
            for looks in of_updates
        ],
    }


def _union(parts: Iterable[Mapping[int, float]]) -> dict[int, float]:
    return {j: value for part in parts for j, value in part.items()}


def merge(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """One record of those of all processes, which may know different blocks.

    Returns:
        Of what several processes know the mean, of memory the largest.
    """
    known: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            known[key].append(value)
    return {
        key: max(values) if key.startswith(PEAK) else fmean(values) for key, values in known.items()
    }
