"""What is said of a budget that cannot be met: why, and what would fit."""

from .plan import Plan
from .setting import Setting
from .sizes import GIB


def above_floor(
    who: str, budget: int, floor: int, unit: str | None, fixed: int, setting: Setting
) -> str:
    """Of a budget below what one unit alone takes.

    Args:
        who: Backbone and method.
        budget: Bytes.
        floor: Bytes that no split gets below.
        unit: Which takes them; weights and batch, if none does.
        fixed: Bytes of weights, optimizer state and batch.
        setting: Of the step.
    """
    fits = setting.batch_size * (budget - fixed) // max(floor - fixed, 1)
    takes = "weights and batch alone take" if unit is None else f"unit {unit} alone takes"
    advice = f"a batch of less than {fits + 1}" if fits > 0 else "a smaller backbone"
    return (
        f"{_refused(who, budget, setting)} above {floor / GIB:.2f} GiB, which {takes}; "
        f"{advice} may fit."
    )


def above_least(who: str, budget: int, least: Plan, fixed: int) -> str:
    """Of a budget below the plan of least memory; arguments as above."""
    fits = least.setting.batch_size * (budget - fixed) // max(least.cost.peak - fixed, 1)
    advice = f"a batch of about {fits}" if fits > 0 else "a smaller backbone"
    return (
        f"{_refused(who, budget, least.setting)} {least.peak_gib:.2f} GiB (k={least.spec.k}, "
        f"{least.arithmetic_ratio:.2f} times the arithmetic of end to end); {advice} would fit."
    )


def _refused(who: str, budget: int, setting: Setting) -> str:
    return (
        f"{who} does not fit into {budget / GIB:.2f} GiB at batch "
        f"{setting.batch_size}{setting.in_slices}: the least is"
    )
