"""The pictures of an analysis, from its numbers. A run has one colour and marker in all of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from torch import Tensor

from ..console.picture import COLOURS, save

Numbers = dict[str, Any]  # as man_zoo.analysis.report.numbers gives them

_MARKERS = "osD^v"
_CKA = "CKA (1: the same up to rotation and scale)"
_MOST_TICKS = 20
_MOST_MATRIX_TICKS = 8
_MOST_MAPS = 6


def draw_separability(found: Numbers, path: Path) -> None:
    """Accuracy of the linear probes over depth, one line a run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, run in enumerate(found["runs"]):
        axes.plot(_depths(found), run["probes"], label=run["label"], **_style(i))
    _depth_axis(axes, found)
    axes.set(ylabel="test top-1 of a linear probe, %", title="Linear separability of the features")
    _legend_below(figure, axes)
    save(figure, path, found)


def draw_auxiliaries(found: Numbers, path: Path) -> None:
    """Accuracy of every block's own exit beside the linear probe, one panel a run.

    Runs whose auxiliaries do not classify, and end-to-end runs, have no panel. Nothing is drawn if
    none is left.
    """
    all_exits = [run["exits"] for run in found["runs"]]
    local = [i for i, exits in enumerate(all_exits) if exits[1:] and exits[0]["top1"] is not None]
    if not local:
        return
    columns = min(2, len(local))
    rows = math.ceil(len(local) / columns)
    figure = Figure(figsize=(6.5 * columns, 4.2 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, i in zip(panels, local, strict=False):
        _draw_exits(panel, found, i)
    for panel in panels[len(local) :]:
        panel.remove()
    for panel in panels[::columns]:
        panel.set_ylabel("test top-1, %")
    for line in _legend_below(figure, panels[0]).get_lines():
        line.set(color="0.3", marker="")  # it speaks for panels of all colours
    save(figure, path, found)


def _draw_exits(axes: Axes, found: Numbers, i: int) -> None:
    run, style = found["runs"][i], _style(i)
    ends = [found["units"].index(exit["unit"]) for exit in run["exits"]]
    top1 = [exit["top1"] for exit in run["exits"]]
    axes.plot(ends, top1, label="the block's own exit", **style)
    dashed = style | {"linestyle": "--", "marker": ""}
    axes.plot(_depths(found), run["probes"], label="a linear probe", **dashed)
    reference = next(run for run in found["runs"] if run["label"] == found["reference"])
    if len(reference["exits"]) == 1:
        label = f"{reference['label']}, the whole of it"
        axes.axhline(reference["exits"][0]["top1"], label=label, linestyle=":", color="0.3")
    axes.set_title(run["label"])
    _depth_axis(axes, found)


def draw_cka(found: Numbers, path: Path) -> None:
    """CKA of every pair of runs, each run with itself too: a matrix of depths by depths."""
    labels = [run["label"] for run in found["runs"]]
    count, depths = len(labels), found["depths"]
    values = {(pair["rows"], pair["columns"]): pair["values"] for pair in found["cka"]}
    figure = Figure(figsize=(2.9 * count + 2, 3.2 * count + 0.5), layout="constrained")
    grid = figure.subplots(count, count, squeeze=False, sharex=True, sharey=True)
    ticks = _thin(range(len(depths)), _MOST_MATRIX_TICKS)
    names = [depths[tick] for tick in ticks]
    for i in range(count):
        for j in range(i + 1):
            panel = grid[i, j]
            image = panel.imshow(
                values[labels[i], labels[j]], origin="lower", vmin=0, vmax=1, cmap="viridis"
            )
            panel.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
            panel.set_yticks(ticks, names)
            panel.tick_params(labelsize="small")
            panel.label_outer()
        for panel in grid[i, i + 1 :]:
            panel.remove()
        grid[i, 0].set_ylabel(f"{labels[i]}\nafter unit")
        grid[-1, i].set_xlabel(f"after unit\n{labels[i]}")
    figure.suptitle("Similarity of features, block by block")
    figure.colorbar(image, ax=figure.axes, label=_CKA, shrink=0.7)
    save(figure, path, found)


def draw_cka_by_depth(found: Numbers, path: Path) -> None:
    """CKA of every other run with the reference at the same depth; nothing for a single run."""
    reference = found["reference"]
    if len(found["runs"]) == 1:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, run in enumerate(found["runs"]):
        if run["label"] != reference:
            axes.plot(_depths(found), run["cka_with_reference"], label=run["label"], **_style(i))
    _depth_axis(axes, found)
    axes.set(
        ylabel=_CKA,
        title=f"Similarity to {reference} at the same depth",
        ylim=(min(0, axes.get_ylim()[0]), 1),
    )
    _legend_below(figure, axes)
    save(figure, path, found)


def draw_feature_maps(
    found: Numbers,
    images: Tensor,
    names: Sequence[str],
    maps: Sequence[Sequence[Tensor]],
    path: Path,
) -> None:
    """Activation maps of a few images: a row for every image and run, a column a depth.

    Args:
        found: For runs and depths.
        images: ``(B, C, H, W)``, values 0 to 1.
        names: Their classes.
        maps: For every run at every depth, ``(B, H, W)``.
        path: Where to.
    """
    labels = [run["label"] for run in found["runs"]]
    shown = _thin(range(len(found["depths"])), _MOST_MAPS)
    rows, columns = len(images) * len(labels), 1 + len(shown)
    figure = Figure(figsize=(1.3 * columns + 2.2, 1.3 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, cells in enumerate(grid):
        b, r = divmod(row, len(labels))
        cells[0].imshow(images[b].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        cells[0].set_ylabel(labels[r], rotation=0, ha="right", va="center")
        for cell, d in zip(cells[1:], shown, strict=True):
            cell.imshow(maps[r][d][b].numpy(), cmap="viridis")
            if row == 0:
                cell.set_title(found["depths"][d], fontsize="medium")
        if r == 0:
            cells[0].set_title(names[b], fontsize="medium")
        for cell in cells:
            cell.set(xticks=[], yticks=[])
    figure.suptitle(
        "Feature maps: mean magnitude over channels, each from dark to bright over its own range"
    )
    save(figure, path, found)


# Those that need no more than the numbers, by the name of their file.
PICTURES = {
    "separability.png": draw_separability,
    "auxiliaries.png": draw_auxiliaries,
    "cka.png": draw_cka,
    "cka_by_depth.png": draw_cka_by_depth,
}


def _style(i: int) -> dict[str, Any]:
    # Seven colours and five markers meet again only after 35 runs.
    marker = _MARKERS[i % len(_MARKERS)]
    return {"color": COLOURS[i % len(COLOURS)], "marker": marker, "markersize": 5}


def _depths(found: Numbers) -> list[int]:
    """Where the depths are among all units."""
    return [found["units"].index(depth) for depth in found["depths"]]


def _depth_axis(axes: Axes, found: Numbers) -> None:
    ticks = _thin(_depths(found), _MOST_TICKS)
    names = [found["units"][tick] for tick in ticks]
    axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlabel("after unit")
    axes.grid(alpha=0.3)


def _thin(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly, the first and the last among them."""
    count = min(most, len(values))
    last = len(values) - 1
    return [values[round(i * last / max(1, count - 1))] for i in range(count)]


def _legend_below(figure: Figure, axes: Axes) -> Legend:
    return figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
