"""The cuts themselves, where they are free: blocks made for the processes that will train them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from .blocks import RunCost, block_cost, inner_ends, shortest_next
from .chain import Chain, Run, fastest, shortage, tightest, too_little
from .cost import CostModel
from .processes import process_bytes


@dataclass(frozen=True)
class _Part:
    """Units ``start`` to ``stop``, cut into blocks."""

    start: int
    stop: int
    cuts: tuple[int, ...]
    cost: RunCost

    def __add__(self, following: "_Part") -> "_Part":
        cuts = (*self.cuts, *following.cuts)
        return _Part(self.start, following.stop, cuts, self.cost + following.cost)


class Spread:
    """Ways to cut a network for processes with given limits.

    Args:
        model: Costs of the pieces.
        limits: Bytes of every process, maybe infinite.
        recomputed: Modes of the units that are recomputed.
        auxiliaries: That of the auxiliaries, if they are.
    """

    def __init__(
        self,
        model: CostModel,
        limits: Sequence[float],
        recomputed: Mapping[int, str],
        auxiliaries: str | None,
    ) -> None:
        self.model, self.limits = model, limits

        def block(start: int, end: int) -> _Part:
            units = range(start, end + 1)
            # AugLocal's auxiliaries are deepest at the first place.
            cost = block_cost(model, units, (0, 2), recomputed, auxiliaries)
            return _Part(start, end + 1, (end,), cost)

        self._single = {
            start: [block(start, end) for end in self._ends(start)]
            for start in range(len(model.units))
        }
        self._parts = [[part for parts in self._single.values() for part in parts]]

    def _ends(self, start: int) -> Iterator[int]:
        shortest = shortest_next(self.model) if start else 1
        for end in (*inner_ends(self.model), len(self.model.units) - 1):
            if end >= start + shortest - 1:
                yield end

    def cut(self, ks: Sequence[int], names: Sequence[str]) -> Chain:
        """Runs whose slowest process is fastest, of as few blocks as fit.

        Args:
            ks: Numbers of blocks that may be tried, the smallest first.
            names: Of the units, for what is said if they do not fit.

        Raises:
            ValueError: If no number fits.
        """
        stop, tight = len(names), []
        for k in ks:
            chain = fastest(self._runs(k), k, stop, self.limits)
            if chain is not None:
                return chain
            tight.append(tightest(self._runs(k), k, stop, self.limits))
        found = [chain for chain in tight if chain is not None]
        if not found:
            raise ValueError(
                f"{stop} units cannot be cut into {ks[0]} blocks for {self.model.spec.method}."
            )
        best = min(found, key=lambda chain: shortage(chain, self.limits))
        raise ValueError(too_little(best, self.limits, lambda run: _name(run, names)))

    def _runs(self, k: int) -> Iterator[Run]:
        """Runs that may be a process's if every process has a block."""
        most = k - len(self.limits) + 1
        while len(self._parts) < most:
            longer = (
                part + single
                for part in self._parts[-1]
                for single in self._single.get(part.stop, ())
            )
            self._parts.append(list(self._best(longer)))
        for blocks, parts in enumerate(self._parts[:most], 1):
            for part in parts:
                yield Run(
                    part.start,
                    part.stop,
                    blocks,
                    part.cost.work,
                    process_bytes(part.cost, self._following(part), first=part.start == 0),
                    part.cuts,
                )

    def _following(self, part: _Part) -> RunCost | None:
        """A block that may come next: what is sent to it does not depend on its length.

        But for InfoPro's last block, which needs no images.
        """
        following = self._single.get(part.stop)
        return following[0].cost if following else None

    def _best(self, parts: Iterable[_Part]) -> Iterator[_Part]:
        """Of parts with the same units, those that no other beats in arithmetic and memory."""
        limited = min(self.limits) < float("inf")
        kept: dict[tuple[int, int], list[RunCost]] = {}
        for part in sorted(parts, key=lambda part: (part.cost.work, part.cost.resident)):
            better = kept.setdefault((part.start, part.stop), [])
            if not any(not limited or _as_small(other, part.cost) for other in better):
                better.append(part.cost)
                yield part


def _name(run: Run, names: Sequence[str]) -> str:
    first, last = names[run.start], names[run.stop - 1]
    return first if first == last else f"{first} to {last}"


def _as_small(one: RunCost, other: RunCost) -> bool:
    sizes = attrgetter("resident", "turn", "steps")
    return all(a <= b for a, b in zip(sizes(one), sizes(other), strict=True))
