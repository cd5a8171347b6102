"""The best split for a limit of memory.

Each unit of a block bounds what the units before it may leave behind, so the cheapest choice of
what to recompute can be found from the block's end to its beginning, for all beginnings at once.
The best cuts are then a shortest path over the blocks.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .blocks import Split, backward_peak, cost_of, inner_ends, input_bytes, shortest_next
from .cost import CostModel

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
        units: For every unit, whether it may be recomputed: ``(False,)``, ``(True,)`` or both.
        auxiliaries: The same for auxiliaries.
    """

    ks: tuple[int, ...]
    units: tuple[tuple[bool, ...], ...]
    auxiliaries: tuple[bool, ...]


@dataclass(frozen=True)
class _Run:
    """A choice for units ``i`` to the end of a block: what may be alive before, and what it costs.

    A linked list, the unit in front first. ``entry`` is what may be alive with the unit's input
    while it runs forward; ``room`` is for later, and has the input where ``saves_input``.
    """

    room: int
    flops: int
    entry: int
    saves_input: bool
    unit: int = -1
    recompute: bool = False
    rest: "_Run | None" = None

    def recomputed(self) -> Iterable[int]:
        run: _Run | None = self
        while run is not None:
            if run.recompute:
                yield run.unit
            run = run.rest


@dataclass(frozen=True)
class _Block:
    """Units ``start`` to ``end``, and which of them, and whether its auxiliary, are recomputed."""

    start: int
    end: int
    flops: int
    units: frozenset[int]
    auxiliary: bool


def cheapest(model: CostModel, limit: int, choices: Choices) -> Split | None:
    """The split of least arithmetic whose peak is at most ``limit`` bytes, if one is found."""
    found = list(_within(model, limit, choices))
    return min(found, key=lambda path: path.flops).split() if found else None


def _within(model: CostModel, limit: int, choices: Choices) -> Iterator["_Path"]:
    """Splits that fit, good ones first.

    What the auxiliaries keep resident depends on the cuts, and the cuts on what that leaves for
    blocks: a share of the limit is set aside for auxiliaries, and what the splits of one share
    would keep is the next share tried.
    """
    shares, tried = deque([0]), set[int]()
    while shares and len(tried) < SHARES:
        share = shares.popleft()
        if share in tried:
            continue
        tried.add(share)
        paths = _paths(model, limit - model.resident - share, choices)
        fits = [path for path in paths if path.resident <= share]
        if fits:
            yield min(fits, key=lambda path: path.flops)
        if paths:
            most, fewest = paths[0].resident, paths[-1].resident
            shares.extend((most, fewest, (most + fewest) // 2))


@dataclass(frozen=True)
class _Path:
    """Blocks from the stem on: their ends, their arithmetic, what their auxiliaries keep."""

    flops: int = 0
    resident: int = 0
    blocks: tuple[_Block, ...] = ()

    def split(self) -> Split:
        return Split(
            cuts=tuple(block.end for block in self.blocks[:-1]),
            units=frozenset().union(*(block.units for block in self.blocks)),
            auxiliaries=frozenset(j for j, block in enumerate(self.blocks) if block.auxiliary),
        )


def _paths(model: CostModel, limit: int, choices: Choices) -> list[_Path]:
    """Ways through the network in blocks that fit into ``limit``; none that another beats."""
    last, shortest = len(model.units) - 1, shortest_next(model)
    blocks = [
        b for end in _ends(model, choices) for b in _blocks_ending(model, end, limit, choices)
    ]
    found: list[_Path] = []
    fronts = {-1: [_Path()]}
    for k in range(1, max(choices.ks) + 1):
        longer: dict[int, list[_Path]] = {}
        for block in blocks:
            if k > 1 and block.end - block.start + 1 < shortest:
                continue
            own = 0 if block.end == last else model.auxiliary_resident(block.end, (0, 2))
            own += model.restored_bytes(0, (0, 2)) if k == 1 and block.end != last else 0
            longer.setdefault(block.end, []).extend(
                _Path(path.flops + block.flops, path.resident + own, (*path.blocks, block))
                for path in fronts.get(block.start - 1, ())
            )
        fronts = {end: _undominated(paths) for end, paths in longer.items()}
        if k in choices.ks:
            found += fronts.get(last, [])
    return _undominated(found)


def _undominated(paths: list[_Path]) -> list[_Path]:
    front: list[_Path] = []
    for path in sorted(paths, key=lambda path: (path.flops, path.resident)):
        if not front or path.resident < front[-1].resident:
            front.append(path)
    return front


def _ends(model: CostModel, choices: Choices) -> list[int]:
    """Units that a block may end after."""
    last = len(model.units) - 1
    inner = inner_ends(model) if max(choices.ks) > 1 else range(0)
    return [*inner, last]


def _blocks_ending(model: CostModel, end: int, limit: int, choices: Choices) -> Iterable[_Block]:
    """The cheapest block from every start to ``end`` that fits into ``limit``."""
    best: dict[int, _Block] = {}
    last = end == len(model.units) - 1
    for auxiliary in (False,) if last else choices.auxiliaries:
        output = model.output(end, (0, 2), auxiliary)
        saves_input = output.saves_input or not last  # the next block's features
        room, entry = limit - output.backward_peak, limit - output.forward_peak
        runs = [_Run(room, output.flops, entry, saves_input)]
        gradients = output.gradients + model.shared_bytes(end + 1)
        temporaries = output.temporaries
        for i in range(end, -1, -1):
            spare = limit - gradients
            started = _extend(model, runs, i, end, True, limit, spare, choices.units[i])
            unit = model.unit(i, first=False, recompute=choices.units[i][0])
            gradients += unit.gradients
            temporaries = model.together(temporaries, unit.temporaries)
            incoming = input_bytes(model, i) + model.shared_bytes(i)
            fits = [run for run in started if min(run.room, run.entry) >= incoming]
            steps = limit - (0 if last else model.out_bytes[end])
            if fits and gradients + temporaries <= steps:
                run = min(fits, key=lambda run: run.flops)
                if i not in best or run.flops < best[i].flops:
                    best[i] = _Block(i, end, run.flops, frozenset(run.recomputed()), auxiliary)
            runs = _extend(model, runs, i, end, False, limit, spare, choices.units[i])
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
    choices: Sequence[bool],
) -> list[_Run]:
    """Runs with unit ``i`` in front, those that another beats in both room and arithmetic left out.

    ``limit`` bounds its forward pass and ``spare`` its backward pass.
    """
    longer = []
    for recompute in choices:
        unit = model.unit(i, first=first, recompute=recompute)
        most = spare - backward_peak(model, unit, i, end)
        entry = limit - unit.forward_peak
        for run in runs:
            later = run.room - (unit.output if run.saves_input else 0)
            room = min(min(later, run.entry - unit.output) - unit.saved, most)
            if min(room, entry) >= 0:
                flops = run.flops + unit.flops
                longer.append(_Run(room, flops, entry, unit.saves_input, i, recompute, run))
    longer.sort(key=lambda run: (run.flops, -run.room))
    front: list[_Run] = []
    for run in longer:
        if not front or run.room > front[-1].room:
            front.append(run)
    stride = -(-len(front) // FRONT)
    return [*front[:-1:stride], front[-1]] if stride > 1 else front


def least(model: CostModel, choices: Choices) -> Split | None:
    """The split of least peak; among such the one of least arithmetic."""
    high = 2 * cost_of(model, Split()).peak
    best, low = cheapest(model, high, choices), model.resident
    if best is None:
        return None
    high = cost_of(model, best).peak
    while high > TOLERANCE * low:
        middle = (low + high) // 2
        path = next(_within(model, middle, choices), None)
        if path is None:
            low = middle
        else:
            best = path.split()
            high = cost_of(model, best).peak
    return cheapest(model, high, choices) or best
