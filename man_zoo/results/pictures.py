"""Pictures of a results file, from numbers that JSON can hold."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from ..console.picture import COLOURS, save
from .groups import Groups


def arithmetic_numbers(
    groups: Groups, rows: Sequence[tuple[str, str]], baseline: str, longer: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Curves of :func:`draw_arithmetic`: arithmetic of a run (baseline = 1), top-1 of each seed.

    Args:
        groups: The results.
        rows: Label and name of each row.
        baseline: Name of end to end.
        longer: Names of longer runs, by those of the rows.
    """
    unit = groups[baseline].arithmetic
    return [
        {
            "label": label,
            "points": [
                [groups[one].arithmetic / unit, groups[one].tops]
                for one in dict.fromkeys((name, longer.get(name, name)))
            ],
        }
        for label, name in rows
    ]


def draw_arithmetic(numbers: list[dict[str, Any]], path: Path) -> None:
    """Top-1 against the arithmetic of the whole run: a dot a run, a line through the means."""
    _draw_against("arithmetic of the whole run, end to end = 1", numbers, path)


def memory_numbers(groups: Groups, rows: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Dots of :func:`draw_memory`: peak of a step in MiB, top-1 of each seed."""
    return [
        {"label": label, "points": [[1024 * groups[name].first["peak_gib"], groups[name].tops]]}
        for label, name in rows
    ]


def draw_memory(numbers: list[dict[str, Any]], path: Path) -> None:
    """Top-1 against the peak memory of a training step: a dot a run."""
    _draw_against("peak of live tensors in a training step, MiB", numbers, path)


def _draw_against(across: str, numbers: list[dict[str, Any]], path: Path) -> None:
    figure, axes = _figure(7.5, 4.5)
    for row, (marker, colour) in zip(numbers, _styles(), strict=False):
        xs, tops = zip(*row["points"], strict=True)
        axes.plot(xs, list(map(mean, tops)), color=colour, linewidth=1)
        dots = [(x, top1) for x, top1s in row["points"] for top1 in top1s]
        axes.plot(*zip(*dots, strict=True), marker, color=colour, markersize=5, label=row["label"])
    axes.set(xlabel=across, ylabel="top-1 on the test images, %")
    axes.set_xlim(left=0)
    _legend(figure)
    save(figure, path, numbers)


def exits_numbers(groups: Groups, rows: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Curves of :func:`draw_exits`: arithmetic of an image up to each exit, its mean top-1.

    The last exit is the network's own, whose arithmetic is 1; others may take more.
    """
    whole = groups[rows[0][1]].first["exit_flops"][-1]
    return [
        {
            "label": label,
            "points": [
                [flops / whole, [top1]]
                for flops, top1 in zip(
                    groups[name].first["exit_flops"], groups[name].exits, strict=True
                )
                if flops is not None and top1 is not None
            ],
        }
        for label, name in rows
    ]


def draw_exits(numbers: list[dict[str, Any]], path: Path) -> None:
    """Top-1 of every exit against the arithmetic of an image up to it."""
    _draw_against("arithmetic of an image up to the exit, whole network = 1", numbers, path)


def _styles() -> Iterator[tuple[str, str]]:
    """Markers and colours that tell rows apart, of however many."""
    return cycle(product("os^", COLOURS))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(figure: Any) -> None:
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
