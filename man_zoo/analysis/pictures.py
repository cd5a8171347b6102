"""The pictures of an analysis. A run has one colour and one marker in all of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from torch import Tensor

from .findings import Findings

# Okabe and Ito's palette for every kind of colour vision, without its pale yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^v"
_CKA = "CKA (1: the same up to rotation and scale)"
_MOST_TICKS = 20
_MOST_MATRIX_TICKS = 16
_MOST_MAPS = 6


def draw_separability(findings: Findings, path: Path) -> None:
    """Accuracy of the linear probes over depth, one line a run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (label, top1) in enumerate(zip(findings.labels, findings.probes, strict=True)):
        axes.plot(findings.depths, top1, label=label, **_style(i))
    _depth_axis(axes, findings)
    axes.set(ylabel="test top-1 of a linear probe, %", title="Linear separability of the features")
    _legend_below(figure, axes)
    _save(figure, path)


def draw_auxiliaries(findings: Findings, path: Path) -> None:
    """Accuracy of every block's own exit beside the linear probe, one panel a run.

    Runs whose auxiliaries do not classify, and end-to-end runs, have no panel. Nothing is drawn if
    none is left.
    """
    local = [i for i, exits in enumerate(findings.exits) if exits[0] is not None and exits[1:]]
    if not local:
        return
    columns = min(2, len(local))
    rows = math.ceil(len(local) / columns)
    figure = Figure(figsize=(6.5 * columns, 4.2 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, i in zip(panels, local, strict=False):
        _draw_exits(panel, findings, i)
    for panel in panels[len(local) :]:
        panel.remove()
    for panel in panels[::columns]:
        panel.set_ylabel("test top-1, %")
    for line in _legend_below(figure, panels[0]).get_lines():
        line.set(color="0.3", marker="")  # it speaks for panels of all colours
    _save(figure, path)


def _draw_exits(axes: Axes, findings: Findings, i: int) -> None:
    ends, exits, style = findings.runs[i].ends, np.array(findings.exits[i], float), _style(i)
    axes.plot(ends, exits, label="the block's own exit", **style)
    dashed = style | {"linestyle": "--", "marker": ""}
    axes.plot(findings.depths, findings.probes[i], label="a linear probe", **dashed)
    if len(findings.reference.ends) == 1:
        whole = findings.top1(findings.reference)
        axes.axhline(
            whole, label=f"{findings.reference.label}, the whole of it", linestyle=":", color="0.3"
        )
    axes.set_title(findings.labels[i])
    _depth_axis(axes, findings)


def draw_cka(findings: Findings, path: Path) -> None:
    """CKA of every pair of runs, each run with itself too: a matrix of depths by depths."""
    labels, count = findings.labels, len(findings.runs)
    figure = Figure(figsize=(2.9 * count + 2, 3.2 * count + 0.5), layout="constrained")
    grid = figure.subplots(count, count, squeeze=False, sharex=True, sharey=True)
    ticks = _thin(range(len(findings.depths)), _MOST_MATRIX_TICKS)
    names = [findings.unit_names[findings.depths[tick]] for tick in ticks]
    for i in range(count):
        for j in range(i + 1):
            panel = grid[i, j]
            image = panel.imshow(
                findings.cka[i, :, j].numpy(), origin="lower", vmin=0, vmax=1, cmap="viridis"
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
    _save(figure, path)


def draw_cka_by_depth(findings: Findings, path: Path) -> None:
    """CKA of every other run with the reference at the same depth; nothing for a single run."""
    reference = findings.reference.label
    if len(findings.runs) == 1:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (label, cka) in enumerate(zip(findings.labels, findings.cka_by_depth(), strict=True)):
        if label != reference:
            axes.plot(findings.depths, cka, label=label, **_style(i))
    _depth_axis(axes, findings)
    axes.set(
        ylabel=_CKA,
        title=f"Similarity to {reference} at the same depth",
        ylim=(min(0, axes.get_ylim()[0]), 1),
    )
    _legend_below(figure, axes)
    _save(figure, path)


def draw_feature_maps(
    findings: Findings,
    images: Tensor,
    names: Sequence[str],
    maps: Sequence[Sequence[Tensor]],
    path: Path,
) -> None:
    """Activation maps of a few images: a row for every image and run, a column a depth.

    Args:
        findings: For runs and depths.
        images: ``(B, C, H, W)``, values 0 to 1.
        names: Their classes.
        maps: For every run at every depth, ``(B, H, W)``.
        path: Where to.
    """
    shown = _thin(range(len(findings.depths)), _MOST_MAPS)
    rows, columns = len(images) * len(findings.runs), 1 + len(shown)
    figure = Figure(figsize=(1.3 * columns + 2.2, 1.3 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, cells in enumerate(grid):
        b, r = divmod(row, len(findings.runs))
        cells[0].imshow(images[b].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        cells[0].set_ylabel(findings.labels[r], rotation=0, ha="right", va="center")
        for cell, d in zip(cells[1:], shown, strict=True):
            cell.imshow(maps[r][d][b].numpy(), cmap="viridis")
            if row == 0:
                cell.set_title(findings.unit_names[findings.depths[d]], fontsize="medium")
        if r == 0:
            cells[0].set_title(names[b], fontsize="medium")
        for cell in cells:
            cell.set(xticks=[], yticks=[])
    figure.suptitle(
        "Feature maps: mean magnitude over channels, each from dark to bright over its own range"
    )
    _save(figure, path)


def _style(i: int) -> dict[str, Any]:
    # Seven colours and five markers meet again only after 35 runs.
    marker = _MARKERS[i % len(_MARKERS)]
    return {"color": _COLOURS[i % len(_COLOURS)], "marker": marker, "markersize": 5}


def _depth_axis(axes: Axes, findings: Findings) -> None:
    ticks = _thin(findings.depths, _MOST_TICKS)
    names = [findings.unit_names[tick] for tick in ticks]
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


def _save(figure: Figure, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, dpi=150, format=path.suffix.lstrip("."))
    unfinished.replace(path)
