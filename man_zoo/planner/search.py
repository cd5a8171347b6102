"""The best split for a limit of memory.

Each unit of a block bounds what the units before it may leave behind, so the cheapest choice of
what to recompute can be found from the block's end to its beginning, for all beginnings at once.
The best cuts are then a shortest path over the blocks.

Whether anything fits is the same search with one choice for each block, the one that leaves most
room: that is how an impossible limit is told in a moment, and how the least memory is found.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..split import block_ranges
from .blocks import (
    Split,
    backward_peak,
    beside,
    block_cost,
    cost_of,
    inner_ends,
    output_bytes,
    shortest_next,
    together,
)
from .cost import CostModel
from .dense import of_later_blocks, waiting_gradients
from .lasting import auxiliary_resident, resident, restored_bytes

# More blocks than this cost arithmetic and no longer save memory: auxiliaries are what is left.
MOST_BLOCKS = 16
# What a plan may choose for an auxiliary; each is measured at every cut.
AUXILIARY_MODES = ("selective", "stepwise", "sparing")
# Choices kept for the units of a block, evenly thinned, so that a search stays short.
FRONT = 24
# A search for the least memory stops where two limits are this close.
TOLERANCE = 1.001
# Shares of memory that are tried for what auxiliaries keep resident.
SHARES = 6


@dataclass(frozen=True)
class Choices:
    """What a search may choose from.

    Args:
        ks: Numbers of blocks.
        units: For every unit the modes in which it may be recomputed; ``None`` is not at all.
        auxiliaries: The same for auxiliaries.
    """

    ks: tuple[int, ...]
    units: tuple[tuple[str | None, ...], ...]
    auxiliaries: tuple[str | None, ...]


class _Run(NamedTuple):
    """A choice for units ``i`` to the end of a block: what may be alive before, and what it costs.

    A linked list, the unit in front first. ``entry`` is what may be alive with the unit's input
    while it runs forward; ``room`` is for later, and has the input where ``saves_input``. ``ahead``
    is the same for the forward passes after it, with autocast's casts.
    """

    room: int
    work: float
    entry: int
    ahead: int
    saves_input: bool
    unit: int = -1
    recompute: str | None = None
    rest: "_Run | None" = None

    def recomputed(self) -> Iterable[tuple[int, str]]:
        run: _Run | None = self
        while run is not None:
            if run.recompute is not None:
                yield run.unit, run.recompute
            run = run.rest


class _Block(NamedTuple):
    """Units ``start`` to ``end``, how they run, and whether the auxiliary is recomputed."""

    start: int
    end: int
    work: float
    run: _Run
    auxiliary: str | None


class _Path(NamedTuple):
    """Blocks from the stem on, a linked list: what they cost, what their auxiliaries keep."""

    work: float = 0
    resident: int = 0
    block: _Block | None = None
    before: "_Path | None" = None

    def split(self) -> Split:
        blocks: list[_Block] = []
        path: _Path | None = self
        while path is not None and path.block is not None:
            blocks.insert(0, path.block)
            path = path.before
        return Split(
            cuts=tuple(block.end for block in blocks[:-1]),
            units=dict(item for block in blocks for item in block.run.recomputed()),
            auxiliaries={j: block.auxiliary for j, block in enumerate(blocks) if block.auxiliary},
        )


# Answers ------------------------------------------------------------------------------------------


def cheapest(model: CostModel, limit: int, choices: Choices) -> Split | None:
    """The split of least work whose peak is at most ``limit`` bytes, if one is found.

    What the auxiliaries keep resident depends on the cuts, and the cuts on what that leaves for
    blocks: a share of the limit is set aside for auxiliaries, and what the splits of one share
    would keep is the next share tried.
    """
    roomiest = _roomiest(model, limit, choices)
    if roomiest is None:
        return None
    shares, tried = deque([roomiest.resident]), set[int]()
    found: list[_Path] = []
    while shares and len(tried) < SHARES:
        share = shares.popleft()
        if share in tried:
            continue
        tried.add(share)
        model.progress()
        paths = _paths(model, limit - resident(model) - share, choices, FRONT)
        found += [path for path in paths if path.resident <= share]
        if paths:
            most, fewest = paths[0].resident, paths[-1].resident
            shares.extend((most, fewest, (most + fewest) // 2))
    path = min(found, key=lambda path: path.work, default=roomiest)
    return _relaxed(model, limit, choices, path.split())


def _relaxed(model: CostModel, limit: int, choices: Choices, split: Split) -> Split:
    """Every unit in the first of its modes that fits and takes no more work.

    The search weighs work alone, and takes a mode that costs none wherever it saves a byte.
    """
    kept, count = together(cost_of(model, split).blocks).kept, len(split.cuts)
    units: dict[int, str | None] = dict(split.units)
    for j, block in enumerate(block_ranges(split.cuts, len(model.units))):
        for i in block:
            pieces = dict(model.worthwhile(i, i == block.start, choices.units[i]))
            most = pieces[units.get(i)].work
            for mode in (mode for mode, piece in pieces.items() if piece.work <= most):
                trial = units | {i: mode}
                cost = block_cost(model, block, (j, count), trial, split.auxiliaries.get(j))
                if kept + max(cost.later if j else cost.turn, cost.steps) <= limit:
                    units = trial
                    break
    return replace(split, units={i: mode for i, mode in units.items() if mode is not None})


def least(model: CostModel, choices: Choices) -> Split:
    """The split of least peak; among such the one of least work. There is one for every K."""
    high = 2 * cost_of(model, Split()).peak
    low = max(bound for bound, _ in floors(model, choices))
    while (best := _roomiest(model, high, choices)) is None:
        high *= 2  # many auxiliaries can outweigh the network
    while high > TOLERANCE * low:
        middle = (low + high) // 2
        path = _roomiest(model, middle, choices)
        if path is None:
            low = middle
        else:
            best = path
            high = min(middle, cost_of(model, best.split()).peak)
    # A search counts all gradients of two batches' update, which are never all there.
    return cheapest(model, high, choices) or best.split()


def floors(model: CostModel, choices: Choices) -> Iterator[tuple[int, int | None]]:
    """Bytes that no split gets below, and the unit that takes them; the quickest to tell first."""
    yield resident(model), None
    for i, own in enumerate(choices.units):
        pieces = [
            model.unit(i, first=first, recompute=choice)
            for choice in own
            for first in ((True, False) if i else (True,))
        ]
        turn = min(max(piece.forward_peak, piece.backward_peak) for piece in pieces)
        yield resident(model) + turn, i


# The search ---------------------------------------------------------------------------------------


def _roomiest(model: CostModel, limit: int, choices: Choices) -> _Path | None:
    """Some split that fits, with the smallest auxiliaries that do; ``None`` if there is none."""
    share = 0
    while paths := _paths(model, limit - resident(model) - share, choices, front=1):
        if paths[-1].resident <= share:
            return paths[-1]
        # Whatever fits keeps at least that.
        share = paths[-1].resident
    return None


def _paths(model: CostModel, limit: int, choices: Choices, front: int) -> list[_Path]:
    """Ways through the network in blocks that fit into ``limit``; none that another beats.

    Args:
        model: Costs of the pieces.
        limit: Bytes.
        choices: What to choose from.
        front: How many choices for the units of a block are followed; with 1, the one that leaves
            most room, and what a way costs does not count.
    """
    last, shortest = len(model.units) - 1, shortest_next(model)
    blocks = [
        (block, 0 if end == last else auxiliary_resident(model, end, (0, 2)))
        for end in _ends(model, choices)
        for block in _blocks_ending(model, end, limit, choices, front)
    ]
    found: list[_Path] = []
    fronts = {-1: [_Path()]}
    for k in range(1, max(choices.ks) + 1):
        longer: dict[int, list[_Path]] = {}
        for block, own in blocks:
            if block.start - 1 not in fronts or (k > 1 and block.end - block.start + 1 < shortest):
                continue
            if k == 1 and block.end != last:
                own += restored_bytes(model, 0, (0, 2))
            longer.setdefault(block.end, []).extend(
                _Path(path.work + block.work * (front > 1), path.resident + own, block, path)
                for path in fronts[block.start - 1]
            )
        fronts = {end: _undominated(paths) for end, paths in longer.items()}
        if k in choices.ks:
            found += fronts.get(last, [])
    return _undominated(found)


def _undominated(paths: list[_Path]) -> list[_Path]:
    front: list[_Path] = []
    for path in sorted(paths, key=lambda path: (path.work, path.resident)):
        if not front or path.resident < front[-1].resident:
            front.append(path)
    return front


def _ends(model: CostModel, choices: Choices) -> list[int]:
    """Units that a block may end after."""
    last = len(model.units) - 1
    inner = inner_ends(model) if max(choices.ks) > 1 else range(0)
    return [*inner, last]


def _blocks_ending(
    model: CostModel, end: int, limit: int, choices: Choices, front: int
) -> Iterable[_Block]:
    """The cheapest block from every start to ``end`` that fits into ``limit``."""
    best: dict[int, _Block] = {}
    last = end == len(model.units) - 1
    for auxiliary in (None,) if last else choices.auxiliaries:
        output = model.output(end, (0, 2), auxiliary)
        saves_input = output.saves_input or not last  # the next block's features
        room, entry = limit - output.backward_peak, limit - output.forward_peak
        runs = [_Run(room, output.work, entry, entry, saves_input)]
        gradients, there = output.gradients + model.left_bytes(end), output.there
        temporaries = output.temporaries
        for i in range(end, -1, -1):
            spare = limit - gradients - of_later_blocks(model, i, end)
            spare -= waiting_gradients(model, 0, i, end)  # at most: where the block begins is open
            unit = model.unit(i, first=False, recompute=choices.units[i][0])
            gradients, there = gradients + unit.gradients, there + unit.there
            temporaries = model.together(temporaries, unit.temporaries)
            if there + gradients + temporaries <= limit - output_bytes(model, end):
                started = _extend(model, runs, i, end, True, limit, spare, choices.units[i])
                alive = beside(model, i, end) + model.shared_bytes(i) + there
                fits = [run for run in started if min(run.room, run.entry) >= alive]
                run = min(fits, key=lambda run: run.work, default=None)
                if run is not None and (i not in best or run.work < best[i].work):
                    best[i] = _Block(i, end, run.work, run, auxiliary)
            longer = _extend(model, runs, i, end, False, limit, spare, choices.units[i])
            runs = _thinned(longer, front)
            if not runs:
                break
    return best.values()


def _extend(
    model: CostModel,
    runs: Sequence[_Run],
    i: int,
    end: int,
    first: bool,
    limit: int,
    spare: int,
    choices: Sequence[str | None],
) -> list[_Run]:
    """Runs with unit ``i`` in front, in no order.

    ``limit`` bounds its forward pass and ``spare`` its backward pass. The ``runs`` come with the
    cheapest in front: once its own peak is what bounds the room, those after it are only dearer.
    """
    longer = []
    for recompute, unit in model.worthwhile(i, first, choices):
        most = spare - backward_peak(model, unit, i, end)
        entry = limit - unit.forward_peak
        if min(most, entry) < 0:
            continue
        for run in runs:
            waiting = unit.saved + (unit.output if run.saves_input else 0)
            following = run.entry - unit.output - unit.saved
            ahead = min(run.ahead - waiting, following) - unit.cached
            room = min(run.room - waiting, ahead)
            if room < 0:
                continue
            own, work = min(room, most), run.work + unit.work
            longer.append(_Run(own, work, entry, ahead, unit.saves_input, i, recompute, run))
            if room >= most:
                break
    return longer


def _thinned(runs: list[_Run], most: int) -> list[_Run]:
    """At most so many, evenly; those that another beats in both room and cost are left out."""
    runs.sort(key=lambda run: (run.work, -run.room))
    front: list[_Run] = []
    for run in runs:
        if not front or run.room > front[-1].room:
            front.append(run)
    stride = -(-len(front) // most)
    return [*front[:-1:stride], front[-1]][-most:] if stride > 1 else front
