"""Runs of one name and different seeds, taken together."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from ..messages import unknown


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Args:
        name: What they are called.
        lines: Of the results file, one a seed.
    """

    name: str
    lines: Sequence[dict[str, Any]]

    @property
    def first(self) -> dict[str, Any]:
        """The line of the first seed, for what all have in common."""
        return self.lines[0]

    @property
    def tops(self) -> list[float]:
        """Top-1 in percent of every seed."""
        return self.scores("top1")

    @property
    def top1(self) -> float:
        """Mean top-1 in percent."""
        return mean(self.tops)

    @property
    def apart(self) -> float:
        """Points of top-1 between the best and the worst seed."""
        return max(self.tops) - min(self.tops)

    def scores(self, *keys: str) -> list[float]:
        """A score of every seed, ``"miou"`` or that of one class, ``"iou", "lake"``."""
        found: list[Any] = list(self.lines)
        for key in keys:
            found = [values[key] for values in found]
        return found

    @property
    def held_out(self) -> list[float]:
        """Top-1 in percent of every seed on the validation images, after the last epoch."""
        return [line["epochs"][-1]["val_top1"] for line in self.lines]

    @property
    def seconds(self) -> float:
        """Mean seconds of training: what it takes if every epoch is as fast as the fastest.

        What else the machine did in the others does not count then.
        """
        return mean(
            len(line["epochs"]) * min(epoch["seconds"] for epoch in line["epochs"])
            for line in self.lines
        )

    @property
    def epochs(self) -> int:
        """Epochs of a run."""
        return len(self.first["epochs"])

    @property
    def arithmetic(self) -> float:
        """Floating-point operations of a whole run."""
        return self.epochs * self.first["data"]["train_count"] * self.first["flops_per_image"]

    @property
    def exits(self) -> list[float | None]:
        """Mean top-1 in percent of every block's exit ``(K,)``; ``None`` where it has no logits."""
        columns = zip(*(line["exits"] for line in self.lines), strict=True)
        return [None if None in column else mean(column) for column in columns]


class Groups:
    """All groups of a results file, by name.

    Args:
        lines: Of the file.
    """

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        names = dict.fromkeys(line["name"] for line in lines)
        self._groups = {
            name: Group(name, [line for line in lines if line["name"] == name]) for name in names
        }

    def widest(self) -> float:
        """Points between the best and the worst seed, of the group where they are most."""
        return max(group.apart for group in self._groups.values())

    def has(self, name: str, seed: int) -> bool:
        """Whether there is a result of that name and seed."""
        return name in self and any(line["seed"] == seed for line in self[name].lines)

    def __contains__(self, name: str) -> bool:
        return name in self._groups

    def __getitem__(self, name: str) -> Group:
        """The group of that name.

        Raises:
            ValueError: If there is none.
        """
        if name not in self._groups:
            raise unknown("result", name, list(self._groups))
        return self._groups[name]
