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

from ..meter import LiveBytes

GRAD_NORM, SECONDS, PEAK = "grad_norm_block", "seconds_block", "peak_mib_block"
METERED = 2  # the update of a process that is metered: the first has no optimizer state yet
MIB = 2**20

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
    peaks: dict[int, int] = field(default_factory=lambda: defaultdict(int))


class Observer:
    """Gradient norms, seconds and peak memory of blocks, from a few updates of an epoch.

    Nothing waits for the device before :meth:`record`, and nothing that is trained changes.

    On CUDA, time is the device's and memory the allocator's peak. Elsewhere time is the host's and
    memory the live bytes of :class:`~man_zoo.meter.LiveBytes`: all that is resident and all that
    the blocks have used. The meter slows an update down, so it runs in a process's second one
    alone, which is not timed.

    Args:
        device: Where the blocks are.
        resident: Model, optimizers and whatever else lives on from update to update, for the
            meter. Empty for no meter: it does not see into compiled blocks.
    """

    def __init__(self, device: torch.device, resident: Sequence[object] = ()) -> None:
        self.device, self.resident = device, resident
        self.on_cuda = device.type == "cuda"
        self.updates = 0  # of this process
        self.update: int | None = None
        self.looks: list[Look] = []
        self.look: Look | None = None
        self.meter: LiveBytes | None = None
        self.metered: dict[int, int] = {}

    def begin(self, update: int, look: bool) -> None:
        """Called before every batch of an update.

        Args:
            update: Its number.
            look: Whether to look at it.
        """
        if update == self.update:
            return
        self.update, self.updates = update, self.updates + 1
        self.look = Look(first=self.updates == 1) if look else None
        if self.look is not None:
            self.looks.append(self.look)
        metered = self.updates == METERED and self.resident and not self.on_cuda
        self.meter = LiveBytes().track(self.resident) if metered else None

    def watch(self, functions: Sequence[Callable[..., Any]]) -> list[Callable[..., Any]]:
        """The functions, one a block from the first on, each run of which is in its turn."""
        return [partial(self._run, j, function) for j, function in enumerate(functions)]

    def _run(self, j: int, function: Callable[..., Any], *args: Any) -> Any:
        with self.turn(j):
            return function(*args)

    @contextmanager
    def turn(self, j: int) -> Iterator[None]:
        """Within, block j (from 0) has its turn, or a part of it: forward, backward or update."""
        if self.meter is not None:
            with self.meter:
                self.meter.reset_peak()
                yield
            self.metered[j] = max(self.metered.get(j, 0), self.meter.peak)
        elif self.look is None:
            yield
        else:
            if self.on_cuda:
                torch.cuda.reset_peak_memory_stats(self.device)
            begun = self._now()
            yield
            self.look.turns.append((j, begun, self._now()))
            if self.on_cuda:
                peak = torch.cuda.max_memory_allocated(self.device)
                self.look.peaks[j] = max(self.look.peaks[j], peak)

    def grad_norm(self, j: int, norm: Tensor) -> None:
        """Take the norm of block j's whole gradient, unscaled and not yet clipped."""
        if self.look is not None:
            self.look.norms[j] = norm

    def record(self) -> dict[str, float]:
        """What was seen since the last call. Waits for the device.

        Returns:
            For the blocks seen, counted from 1: ``grad_norm_block1``, the mean over the updates
            looked at, but for those that a gradient scaler skipped; ``seconds_block1``, the mean
            of an update, forward, backward and update of all its batches; ``peak_mib_block1``, the
            largest. A process's first update has a say in time and memory only where there is no
            other.
        """
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        looks, self.looks = self.looks, []
        steady = [look for look in looks if look.turns and not look.first] or looks
        norms, seconds, peaks = defaultdict(list), defaultdict(list), dict(self.metered)
        for look in looks:
            for j, norm in look.norms.items():
                if isfinite(value := norm.item()):
                    norms[j].append(value)
        for look in steady:
            for j, took in _sums(look.turns).items():
                seconds[j].append(took)
            for j, peak in look.peaks.items():
                peaks[j] = max(peaks.get(j, 0), peak)
        return {
            **{f"{GRAD_NORM}{j + 1}": fmean(of_block) for j, of_block in sorted(norms.items())},
            **{f"{SECONDS}{j + 1}": fmean(of_block) for j, of_block in sorted(seconds.items())},
            **{f"{PEAK}{j + 1}": peak / MIB for j, peak in sorted(peaks.items())},
        }

    def state_dict(self) -> dict[str, Any]:
        """Norms, which are the run's; time and memory are those of a process."""
        return {"norms": [look.norms for look in self.looks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.looks = [Look(first=True, norms=norms) for norms in state["norms"]]

    def _now(self) -> Moment:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _sums(turns: Iterable[tuple[int, Moment, Moment]]) -> dict[int, float]:
    """Seconds of every block's turns together."""
    seconds: dict[int, float] = defaultdict(float)
    for j, begun, ended in turns:
        seconds[j] += ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1e3
    return seconds


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
