"""Plans side by side with what a practitioner would use instead, as a table and as a picture."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..console import table, whole
from ..split import block_ranges, published_cuts
from .alternatives import Metered, Refused, alternatives_of, meter_alternatives
from .plan import Plan
from .planner import Planner
from .sizes import in_gib

HEADER = ("", "K", "form", "peak GiB", "of e2e", "arithmetic of e2e", "recomputed")


Row = Plan | Metered | Refused


def compare(planner: Planner, k: int, budget: int | None = None) -> dict[str, Row]:
    """End to end and its alternatives, published, even and planned cuts, and the budget's plan.

    Args:
        planner: For the backbone, method and setting.
        k: Number of blocks of the rows that are not within the budget.
        budget: Bytes; left out without one.

    Raises:
        ValueError: For an impossible K, a budget that cannot be met.
    """
    slices = planner.setting.in_slices
    plans: dict[str, Row] = {f"end to end{slices}": planner.end_to_end()}
    plans |= meter_alternatives(planner)
    if (planner.name, k) in published_cuts(planner.task.name):
        plans[f"published cuts{slices}"] = planner.cuts(k, "published")
    plans[f"even cuts{slices}"] = planner.cuts(k, "even")
    for form in planner.forms:
        of_form = f", {form} form" if form else ""
        plans[f"planned cuts{of_form}{slices}"] = planner.balanced(k, form=form)
    if budget is not None:
        plans[f"planned within {in_gib(budget)} GiB{slices}"] = planner.within(budget)
    return plans


def render(plans: dict[str, Row]) -> str:
    """The plans as a table."""
    return table(HEADER, [[name, *_cells(plan)] for name, plan in plans.items()])


def _cells(row: Row) -> tuple[str, ...]:
    if isinstance(row, Refused):
        return "1", "", "", "", "", row.reason
    figures = (in_gib(row.cost.peak), f"{row.memory_ratio:.2f}", f"{row.arithmetic_ratio:.2f}")
    if isinstance(row, Plan):
        return str(row.spec.k), row.form or "", *figures, _parts(row)
    return "1", "", *figures, ""


def _parts(plan: Plan) -> str:
    units, auxiliaries = len(plan.split.units), len(plan.split.auxiliaries)
    parts = [f"{units} of {len(plan.names)} units"] if units else []
    parts += [f"{auxiliaries} of {plan.spec.k - 1} auxiliaries"] if auxiliaries else []
    return ", ".join(parts)


def verdict(planner: Planner, plan: Plan) -> str:
    """What end to end with recomputation would cost within the same memory, in a sentence."""
    alone = planner.checkpointed_within(plan.cost.peak)
    if alone is None:
        smallest = planner.end_to_end("all")
        return (
            f"End to end{plan.setting.in_slices} does not fit into {in_gib(plan.cost.peak)} GiB: "
            f"with every unit recomputed it takes {in_gib(smallest.cost.peak)} GiB at "
            f"{smallest.arithmetic_ratio:.2f} times the arithmetic."
        )
    alone_is = f"End to end with recomputation{plan.setting.in_slices}"
    ratio = f"{alone.arithmetic_ratio:.2f} times the arithmetic"
    if alone.cost.total <= plan.cost.total:
        return (
            f"{alone_is} reaches {in_gib(plan.cost.peak)} GiB at {ratio}, against "
            f"{plan.arithmetic_ratio:.2f}: on one device it is the better answer."
        )
    return (
        f"{alone_is} needs {ratio} to fit into {in_gib(plan.cost.peak)} GiB, against "
        f"{plan.arithmetic_ratio:.2f}."
    )


def front(planner: Planner) -> dict[str, list[Plan]]:
    """The least arithmetic for one memory after another: end to end, and each form of MAN."""
    curves = {"end to end, recomputing as planned": planner.front(None)}
    for form in planner.forms:
        name = f"{planner.method}, {form} form" if form else planner.method
        curves[name] = planner.front(form, local=True)
    return curves


def draw(
    planner: Planner, curves: dict[str, list[Plan]], plans: dict[str, Row], path: Path
) -> None:
    """Draw curves and single plans, memory across and arithmetic up.

    Args:
        planner: For the title.
        curves: Of :func:`front`.
        plans: Of :func:`compare`; end to end is where the arithmetic is 1.
        path: Where to; its ending is the format.
    """
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (name, curve), marker in zip(curves.items(), "osD^", strict=False):
        points = [(plan.peak_gib, plan.arithmetic_ratio) for plan in curve]
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name)
    ways = alternatives_of(planner).items()
    drawn = {name: row for name, row in plans.items() if not isinstance(row, Refused)}
    sliced = [drawn[name] for name, way in ways if way.checkpointed and not way.small_state]
    axes.plot(
        [row.peak_gib for row in sliced],
        [row.arithmetic_ratio for row in sliced],
        ":",
        color="grey",
    )
    for (name, row), marker in zip(drawn.items(), cycle("*XP<>hvd^s"), strict=False):
        label, colour = name, "tab:grey"
        if isinstance(row, Plan):
            label, colour = f"{name} (K={row.spec.k})" if row.spec.k > 1 else name, "black"
        axes.plot(
            row.peak_gib, row.arithmetic_ratio, marker, color=colour, markersize=8, label=label
        )
    setting = planner.setting
    axes.set(
        xlabel="peak memory of a training step, GiB",
        ylabel="arithmetic, end to end = 1",
        title=f"{planner.name}, batch {setting.batch_size}, "
        f"{planner.input_size[1]}x{planner.input_size[2]}, {setting.opt}",
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format=path.suffix.lstrip(".") or "png")


def describe(plan: Plan, keywords: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A plan block by block, and the call that makes it, with further keywords of that."""
    rows = []
    for j, block in enumerate(block_ranges(plan.split.cuts, len(plan.names))):
        first, last = plan.names[block[0]], plan.names[block[-1]]
        rows.append(
            (
                f"{j + 1}  {first if len(block) == 1 else f'{first} to {last}'}",
                in_gib(plan.cost.peaks[j]),
                f"{plan.cost.flops[j] / plan.end_to_end.total:.3f}",
                _recomputed(plan, j, block),
            )
        )
    header = ("block", "peak GiB", "arithmetic of e2e", "recomputed")
    total = (
        f"{plan.spec.name}{f', {plan.form} form' if plan.form else ''}{plan.setting.in_slices}: "
        f"{in_gib(plan.cost.peak)} GiB, {plan.memory_ratio:.2f} of end to end, "
        f"at {plan.arithmetic_ratio:.2f} times its arithmetic"
    )
    return "\n".join([table(header, rows), "", total, localize_call(plan, keywords)])


def _recomputed(plan: Plan, j: int, block: range) -> str:
    units = sum(i in block for i in plan.split.units)
    parts = [f"{units} of {len(block)} units"] if units else []
    return ", ".join(parts + (["auxiliary"] if j in plan.split.auxiliaries else []))


def localize_call(plan: Plan, keywords: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The Python that builds the plan's model, and its step where that has micro-batches."""
    chosen = {key: value for key, value in plan.keywords().items() if value}
    for key in ("cuts", "recompute"):
        if key in chosen:
            chosen[key] = " ".join(chosen[key])
    given = ", ".join(f"{key}={value!r}" for key, value in (chosen | dict(keywords)).items())
    call = f'man_zoo.localize("{plan.spec.backbone}", "{plan.spec.method}", {given})'
    count = plan.setting.micro_batches
    step = f"model.local_step(images, target, micro_batches={count})"
    return call if count == 1 else f"{call}\n{step}"
