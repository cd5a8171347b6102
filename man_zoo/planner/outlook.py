"""What to expect of blocks on several processes, as a table and in sentences."""

from collections.abc import Iterator, Sequence

from ..console import table
from ..split import block_ranges
from .chain import each_limit
from .plan import Plan
from .processes import Placement
from .sizes import GIB, MIB

MICRO_BATCHES = 4  # a process, of the pipeline that is compared with


def outlook(plan: Plan, placement: Placement, limits: Sequence[int] = ()) -> str:
    """A row a process, then the slot, the speed-up, and what a pipeline would leave idle.

    ``sends`` is what goes to the next process in a step, ``back`` what comes from it.

    Args:
        plan: The split.
        placement: Of its blocks.
        limits: Bytes: one for every process, one for all, or none.
    """
    header = ["process", "blocks", "peak GiB", "sends MiB", "back MiB", _kind(placement), "busy"]
    rows = list(_rows(plan, placement))
    if limits:
        own = ["of GiB", *(f"{limit / GIB:.2f}" for limit in each_limit(limits, len(rows)))]
        for cells, limit in zip([header, *rows], own, strict=True):
            cells.insert(3, limit)
    return "\n".join([table(header, rows), "", *_sentences(plan, placement)])


def _rows(plan: Plan, placement: Placement) -> Iterator[list[str]]:
    units = block_ranges(plan.split.cuts, len(plan.names))
    for p, own in enumerate(placement.ranges):
        first, last = plan.names[units[own[0]][0]], plan.names[units[own[-1]][-1]]
        yield [
            f"{p + 1}  {first if first == last else f'{first} to {last}'}",
            f"{own[0] + 1}" if len(own) == 1 else f"{own[0] + 1}-{own[-1] + 1}",
            f"{placement.bytes[p] / GIB:.2f}",
            f"{placement.sent[p] / MIB:.2f}",
            f"{placement.returned[p] / MIB:.2f}",
            f"{placement.work[p] / plan.cost.work:.3f}",
            f"{placement.busy[p]:.2f}",
        ]


def _sentences(plan: Plan, placement: Placement) -> Iterator[str]:
    count = len(placement.ranges)
    batches = MICRO_BATCHES * count
    bubble = bubble_1f1b(count, batches)
    yield (
        f"A slot, {_amount(placement)}, takes {1 / placement.speed_up:.3f} of one "
        "process's step: "
        f"{placement.speed_up:.2f} times the images/s of the same blocks in one process "
        f"({count} at best), {plan.end_to_end.work / placement.slot:.2f} times those of end to "
        "end, where all are equally fast and links take no time."
    )
    yield (
        f"1F1B with {batches} micro-batches would leave every process idle for {bubble:.1%} of a "
        f"step: {count * (1 - bubble):.2f} times end to end at best."
    )


def _kind(placement: Placement) -> str:
    return "time" if placement.seconds else "arithmetic"


def _amount(placement: Placement) -> str:
    if placement.seconds:
        return f"{placement.slot:.3g} s"
    return f"{placement.slot / 1e12:.3g} TFLOP"


def bubble_1f1b(processes: int, micro_batches: int) -> float:
    """Share of a step that a process of the 1F1B pipeline stands idle, its stages being equal."""
    return (processes - 1) / (micro_batches + processes - 1)
