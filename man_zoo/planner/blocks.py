"""From the cost of pieces to the cost of blocks, of runs of blocks, and of a whole split.

A block's memory rises while its units run forward, peaks around its auxiliary, and falls while its
units run backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add

from ..split import block_ranges
from .cost import CostModel
from .dense import carried, of_later_blocks, waiting_gradients
from .lasting import (
    auxiliary_resident,
    block_accumulated,
    head_resident,
    restored_bytes,
    source_bytes,
    unit_accumulated,
    unit_resident,
)
from .piece import Piece


@dataclass(frozen=True)
class Split:
    """Where to cut and what to recompute, as indices.

    Args:
        cuts: Last unit of blocks 1 .. K-1.
        units: Modes of the units that are recomputed.
        auxiliaries: Modes of the auxiliaries that are recomputed.
    """

    cuts: tuple[int, ...] = ()
    units: Mapping[int, str] = field(default_factory=dict, hash=False)
    auxiliaries: Mapping[int, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class RunCost:
    """Of blocks that run one after the other in one process: one block, or the sum of several.

    Args:
        flops: Arithmetic of a step.
        resident: Bytes of weights, auxiliaries and head included, and of optimizer state.
        input: Of the features that come in, or of the images.
        output: Of the features that go out; 0 for the head.
        joined: Of these once more, where slices are put together to go to another process.
        target: Of the target.
        image: Of the un-normalised images, where an auxiliary looks at them.
        source: Of what the block before copies again after every step.
        turn: Most bytes alive in forward and backward of a block, what is named above left out.
        later: The same after other blocks of the process: the input is no longer kept for long.
        steps: Most bytes alive while a block's optimizer steps, what is named above left out.
        accumulated: Of the gradients among ``resident`` that go when the optimizers have stepped.
        first: As ``later``, in the first batch of an update: less what gradients are still to come.
        seconds: Of a step, where the pieces were timed.
    """

    flops: int
    resident: int
    input: int
    output: int
    joined: int
    target: int
    image: int
    source: int
    turn: int
    later: int
    steps: int
    accumulated: int
    first: int
    seconds: float = 0.0

    def __add__(self, following: RunCost) -> RunCost:
        return RunCost(
            flops=self.flops + following.flops,
            resident=self.resident + following.resident,
            input=self.input,
            output=following.output,
            joined=following.joined,
            target=self.target,
            image=max(self.image, following.image),
            source=self.source,
            turn=max(self.turn, following.later),
            later=max(self.later, following.later),
            steps=max(self.steps, following.steps - self.accumulated),
            accumulated=self.accumulated + following.accumulated,
            first=max(self.first, following.first),
            seconds=self.seconds + following.seconds,
        )

    @property
    def work(self) -> float:
        """What a plan keeps small: seconds, or arithmetic where nobody timed the pieces."""
        return self.seconds or self.flops

    @property
    def kept(self) -> int:
        """Bytes that live through the whole step: what comes in is held by who received it."""
        return self.resident + self.input + self.target + self.image


def together(blocks: Sequence[RunCost]) -> RunCost:
    """Of all the blocks as one run."""
    return reduce(add, blocks)


@dataclass(frozen=True)
class Cost:
    """Of a split, block by block.

    Args:
        blocks: In order.
        batches: To one update.
    """

    blocks: tuple[RunCost, ...]
    batches: int = 1

    @cached_property
    def peaks(self) -> tuple[int, ...]:
        """Most bytes alive in each block's turn, in one process that holds all of them."""
        every, before, peaks = together(self.blocks), 0, []
        for j, block in enumerate(self.blocks):
            after = every.accumulated - before - block.accumulated
            turn = block.later if j else block.turn
            if self.batches == 2:
                # The first has no gradients of later blocks yet, and the last none of earlier
                # ones any more; of more batches, one between them has all.
                turn = max(turn - before, block.first - after)
            peaks.append(every.kept + max(turn, block.steps - before))
            before += block.accumulated
        return tuple(peaks)

    @property
    def flops(self) -> tuple[int, ...]:
        """Arithmetic of each block."""
        return tuple(block.flops for block in self.blocks)

    @property
    def peak(self) -> int:
        """Of the whole step, in bytes."""
        return max(self.peaks)

    @property
    def total(self) -> int:
        """Arithmetic of the whole step."""
        return sum(self.flops)

    @property
    def seconds(self) -> float:
        """Of the whole step; 0 where the pieces were not timed."""
        return sum(block.seconds for block in self.blocks)

    @property
    def work(self) -> float:
        """Seconds of the whole step, or arithmetic where nobody timed the pieces."""
        return sum(block.work for block in self.blocks)


def cost_of(model: CostModel, split: Split) -> Cost:
    """What every block of a split costs."""
    count = len(split.cuts)
    return Cost(
        tuple(
            block_cost(model, block, (j, count), split.units, split.auxiliaries.get(j))
            for j, block in enumerate(block_ranges(split.cuts, len(model.units)))
        ),
        model.setting.grad_accum_steps,
    )


def block_cost(
    model: CostModel,
    block: range,
    place: tuple[int, int],
    recomputed: Mapping[int, str | None],
    auxiliary: str | None,
) -> RunCost:
    """What one block costs.

    Args:
        model: Of the pieces.
        block: Its units.
        place: Which block it is, from 0, and how many auxiliaries there are.
        recomputed: Modes of the units that are recomputed.
        auxiliary: That of its auxiliary, if it is.
    """
    start, end = block[0], block[-1]
    last = end == len(model.units) - 1
    output = model.output(end, place, auxiliary, start)
    units = [model.unit(i, first=i == start, recompute=recomputed.get(i)) for i in block]
    accumulated = block_accumulated(model, block, end, place)
    passes, first, steps = _turn(model, block, units, output, accumulated)
    ends = head_resident(model) if last else auxiliary_resident(model, end, place)
    return RunCost(
        flops=output.flops + sum(unit.flops for unit in units),
        resident=ends + sum(unit_resident(model, i) for i in block),
        input=input_bytes(model, start) if start else model.image_bytes,
        output=output_bytes(model, end),
        joined=output_bytes(model, end) if model.setting.micro_batches > 1 else 0,
        target=model.target_bytes,
        image=0 if last else restored_bytes(model, end, place),
        source=source_bytes(model, start),
        turn=beside(model, 0, end) + passes,
        later=beside(model, start, end) + passes,
        steps=steps,
        accumulated=accumulated,
        first=beside(model, start, end) + first,
        seconds=output.seconds + sum(unit.seconds for unit in units),
    )


def _turn(
    model: CostModel, block: range, units: Sequence[Piece], output: Piece, accumulated: int
) -> tuple[int, int, int]:
    """Most bytes alive in forward and backward, in those of a first batch, and while it steps."""
    start, end = block[0], block[-1]
    last = end == len(model.units) - 1
    begun = model.shared_bytes(start) + sum(piece.there for piece in (*units, output))
    alive = peak = begun
    waiting = cached = 0  # the last output, which nobody may have saved, and autocast's casts
    inputs = []
    for unit in units:
        peak = max(peak, alive + waiting + cached + unit.forward_peak)
        inputs.append(waiting if unit.saves_input else 0)
        alive, waiting = alive + inputs[-1] + unit.saved, unit.output
        cached += unit.cached
    peak = max(peak, alive + waiting + cached + output.forward_peak)
    first, missing = peak - accumulated, sum(unit_accumulated(model, i) for i in block)
    kept = 0 if last and not output.saves_input else waiting
    passes = alive + kept + output.backward_peak
    peak, first = max(peak, passes), max(first, passes - missing)
    gradients = output.gradients + model.left_bytes(end)
    temporaries = output.temporaries
    for i, unit in reversed(list(enumerate(units, start))):
        alive -= unit.saved
        missing -= unit_accumulated(model, i)
        passes = alive + gradients + backward_peak(model, unit, i, end)
        passes += waiting_gradients(model, start, i, end) + of_later_blocks(model, i, end)
        peak, first = max(peak, passes), max(first, passes - missing)
        alive -= inputs[i - start]
        gradients += unit.gradients
        temporaries = model.together(temporaries, unit.temporaries)
    return peak, first, output_bytes(model, end) + begun + gradients + temporaries


def input_bytes(model: CostModel, start: int) -> int:
    """Bytes of the features that a block from unit ``start`` takes; images live on anyway."""
    return model.out_bytes[start - 1] + carried(model, start - 1) if start else 0


def output_bytes(model: CostModel, end: int) -> int:
    """Bytes of the features that a block up to unit ``end`` passes on; none from the last one."""
    return model.out_bytes[end] + carried(model, end) if end < len(model.units) - 1 else 0


def beside(model: CostModel, start: int, end: int) -> int:
    """Bytes of a block's input and output that its pieces do not count, while they run.

    Of a batch in slices that is the input of the one that runs, and of the others input or output,
    whichever is more: an output takes its input's place.
    """
    enters, leaves = input_bytes(model, start), output_bytes(model, end)
    own = model.setting.of_slice(enters)
    return own + max(enters - own, leaves - model.setting.of_slice(leaves))


def backward_peak(model: CostModel, unit: Piece, i: int, end: int) -> int:
    """Of unit ``i`` in a block up to ``end``, whose output is kept for the next block."""
    if end == len(model.units) - 1:
        return unit.backward_peak
    own = model.setting.of_slice(model.out_bytes[end])
    return unit.held_peak if i == end else unit.backward_peak + own


# Where a block may end ----------------------------------------------------------------------------


def inner_ends(model: CostModel) -> range:
    """Units that a block before the last may end after.

    AugLocal's last units train together, and MAN copies whole units.
    """
    spec = model.spec
    trained = spec.head_settings.get("aux_depth", 2) if spec.base == "auglocal" else 0
    copied = spec.momentum.momentum_units - 1 if spec.momentum else 0
    return range(len(model.units) - 1 - max(trained, copied))


def shortest_next(model: CostModel) -> int:
    """Units that a block must have for the one before to copy them."""
    return model.spec.momentum.momentum_units if model.spec.momentum else 1


def most_blocks(model: CostModel) -> int:
    """How many blocks there can be."""
    return 1 + -(-len(inner_ends(model)) // shortest_next(model))
