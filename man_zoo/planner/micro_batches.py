"""How many micro-batches: as few as come near the least arithmetic within a budget."""

from collections.abc import Sequence

from .plan import Plan
from .planner import Planner

AUTO = "auto"
COUNTS = (1, 2, 4, 8)
# Small slices use a device less well, so one that saves no more arithmetic than this is not taken.
NEAR = 1.01


def choose_micro_batches(
    planner: Planner,
    budget: int,
    k: int | None = None,
    recompute: str | Sequence[str] | None = None,
) -> tuple[Planner, Plan]:
    """The plan within ``budget`` bytes, and its planner; micro-batches are chosen with all else.

    Slices that train otherwise than the whole batch are not chosen: with BatchNorm, and with losses
    that compare images, the batch stays whole.

    Args:
        planner: Of the batch in one.
        budget: As :meth:`Planner.within` takes it.
        k: Likewise.
        recompute: Likewise.

    Raises:
        ValueError: If the budget cannot be met with any number; says what the least is.
    """
    most = planner.setting.batch_size if planner.divisible else 1
    counts = [count for count in COUNTS if count <= most]
    found: list[tuple[Planner, Plan]] = []
    for count in counts:
        sliced = planner if count == 1 else planner.with_micro_batches(count)
        try:
            found.append((sliced, sliced.within(budget, k, recompute)))
        except ValueError:
            if count == counts[-1] and not found:
                raise
    least = min(plan.cost.total for _, plan in found)
    return next((one, plan) for one, plan in found if plan.cost.total <= NEAR * least)
