"""A plan: a split, and what a training step of it costs."""

from dataclasses import dataclass
from typing import Any

from ..spec import LocalSpec
from .blocks import Cost, Split
from .ratios import BesideEndToEnd
from .setting import Setting


@dataclass(frozen=True)
class Plan(BesideEndToEnd[Cost]):
    """A split, and what a training step of it costs.

    Args:
        spec: Backbone, method, K, cuts, form and recomputation; ``man_zoo.localize`` takes them.
        names: Names of the units.
        split: The same as indices.
        cost: Peak bytes and arithmetic, block by block.
        end_to_end: Those of the backbone trained end to end, the batch in one.
        setting: Batch, optimizer, precision.
    """

    spec: LocalSpec
    names: tuple[str, ...]
    split: Split
    cost: Cost
    end_to_end: Cost
    setting: Setting

    @property
    def form(self) -> str | None:
        """MAN's form, where there is one."""
        return self.spec.momentum.form if self.spec.momentum else None

    def keywords(self) -> dict[str, Any]:
        """``k``, ``cuts``, ``recompute`` and ``form`` for :func:`man_zoo.localize`."""
        form = {"form": self.form} if self.form else {}
        return {"k": self.spec.k, "cuts": self.spec.cuts, "recompute": self.spec.recompute} | form
