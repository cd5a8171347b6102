"""Which process trains which blocks: the slowest one fastest, each within its memory.

A process runs batch t in the slot in which the next one runs batch t - 1, so a slot lasts as long
as the slowest process's share of a step. Processes count as equally fast. What one holds: its
blocks' weights and optimizer state; what comes in (features or images, target, the un-normalised
images where an auxiliary looks at them), twice where it comes from another process, because the
next batch arrives meanwhile; a mirror of the next process's first units where MAN follows them;
what goes out of the last batch, until it has been sent; and the most that is alive during its
blocks' turns. With micro-batches what goes out counts once more, because the slices are put
together: at most that much too high.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ..local_model import LocalModel
from ..recompute import choose_recompute
from .blocks import RunCost, Split, cost_of, together
from .chain import Run, each_limit, fastest, tightest, too_little
from .cost import CostModel
from .seconds import Clock
from .setting import Setting


@dataclass(frozen=True)
class Placement:
    """The blocks of every process, and what each costs.

    Args:
        ranges: Of every process, the indices of its blocks.
        bytes: Most bytes alive in it.
        flops: Its arithmetic of one batch.
        sent: Bytes to the next process in a step: features, target, images where they are looked
            at; 0 for the last one.
        returned: Bytes that come back from it: the parameters that MAN's copy follows.
        seconds: Its own of one batch, where the pieces were timed; else empty.
    """

    ranges: tuple[range, ...]
    bytes: tuple[int, ...]
    flops: tuple[int, ...]
    sent: tuple[int, ...]
    returned: tuple[int, ...]
    seconds: tuple[float, ...] = ()

    @property
    def work(self) -> tuple[float, ...]:
        """Of each process: seconds where they are known, else arithmetic."""
        return self.seconds or self.flops

    @property
    def slot(self) -> float:
        """Work of the slowest process: how long a slot lasts."""
        return max(self.work)

    @property
    def busy(self) -> tuple[float, ...]:
        """Share of a slot in which each process computes."""
        return tuple(work / self.slot for work in self.work)

    @property
    def speed_up(self) -> float:
        """Over one process that runs all the blocks in turn."""
        return sum(self.work) / self.slot


def place(
    model: LocalModel,
    setting: Setting,
    processes: int,
    limits: Sequence[int] = (),
    calibrate: bool = False,
    queue: int = 1,
) -> Placement:
    """The blocks of every process for a model that is there.

    Args:
        model: With its auxiliaries, on any device; left as it is.
        setting: Batch, optimizer, precision.
        processes: How many there are.
        limits: As :func:`assign` takes them.
        calibrate: Whether to time the pieces on the device at hand: arithmetic balances badly
            where maps are large and layers narrow.
        queue: As :class:`man_zoo.BlockParallel` takes it.

    Raises:
        ValueError: As :func:`assign`, and for overlap; for a piece that does not fit on the device.
    """
    model.spec.need_whole_units("block parallelism")
    clock = None
    if calibrate:
        clock = Clock(model.backbone, setting, model.input_size, model.task)
    about = model.backbone, model.spec, model.input_size, setting
    costs = CostModel(*about, model.criterion, clock=clock, task=model.task)
    chosen = choose_recompute(
        model.spec.recompute, model.unit_names, costs.units.modules, len(model.cuts)
    )
    return assign(cost_of(costs, Split(model.cuts, *chosen)).blocks, processes, limits, queue)


def assign(
    blocks: Sequence[RunCost], processes: int, limits: Sequence[int] = (), queue: int = 1
) -> Placement:
    """The runs of consecutive blocks whose slowest process is fastest.

    Args:
        blocks: Costs of all blocks, in order.
        processes: How many there are.
        limits: Bytes: one for every process, one for all, or none.
        queue: How many batches' features may be on the way to the next process.

    Raises:
        ValueError: For more processes than blocks, another number of limits, one that cannot be
            met.
    """
    if not 1 <= processes <= len(blocks):
        raise ValueError(
            f"{processes} processes need as many blocks, and there are {len(blocks)}; use "
            f"1 to {len(blocks)} processes or a larger k."
        )
    own_limits = each_limit(limits, processes)
    runs = []
    for start, stop in combinations(range(len(blocks) + 1), 2):
        cost, following = together(blocks[start:stop]), (*blocks, None)[stop]
        size = process_bytes(cost, following, first=start == 0, queue=queue)
        runs.append(Run(start, stop, stop - start, cost.work, size))
    best = fastest(runs, len(blocks), len(blocks), own_limits)
    if best is None:
        least = tightest(runs, len(blocks), len(blocks), own_limits)
        assert least is not None  # every process can be given a block
        raise ValueError(too_little(least, own_limits, _numbers))
    costs = [together(blocks[run.start : run.stop]) for run in best]
    links = [(blocks[run.stop - 1], blocks[run.stop]) for run in best[:-1]]
    return Placement(
        tuple(range(run.start, run.stop) for run in best),
        tuple(run.bytes for run in best),
        tuple(cost.flops for cost in costs),
        (*(sent_bytes(own, following) for own, following in links), 0),
        (*(following.source for _, following in links), 0),
        tuple(cost.seconds for cost in costs if cost.seconds),
    )


def _numbers(run: Run) -> str:
    return f"block {run.stop}" if run.k == 1 else f"blocks {run.start + 1} to {run.stop}"


def process_bytes(own: RunCost, following: RunCost | None, *, first: bool, queue: int = 1) -> int:
    """Most bytes alive in a process.

    Args:
        own: Of its blocks together.
        following: Of the next process's first block.
        first: Whether it is the first process, to which nothing is sent.
        queue: How many batches' features may be on the way to the next process.
    """
    alone = own.kept + max(own.turn, own.steps)
    if not first:  # the next batch arrives meanwhile
        alone += own.input + own.target + own.image
    if following is None:
        return alone
    return alone + following.source + queue * sent_bytes(own, following) + own.joined


def sent_bytes(own: RunCost, following: RunCost) -> int:
    """Bytes that a process sends to the next one in a step; losses and headers are not counted.

    Args:
        own: Of its last block.
        following: Of the next process's first block.
    """
    return own.output + following.target + following.image
