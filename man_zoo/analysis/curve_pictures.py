"""The picture of how runs went: a panel a quantity, all runs in each."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ..console.picture import COLOURS, save
from .curves import OF_BLOCKS, Curves

Style = tuple[Colormap, Any]  # a colour scale and how lines are dashed

_COLUMNS = (("loss_block", "grad_norm_block"), ("val_score", "images_per_second"))
_TITLES = {
    "loss_block": "local loss",
    "grad_norm_block": "norm of the gradient",
    "images_per_second": "images a second",
    "epoch": "epoch",
    "seconds": "seconds of training",
    "update": "update",
}
_DASHES = ("-", "--", "-.")
_PALEST = 0.2  # of a colour scale whose pale end cannot be read on white
_FEW = 40  # points that can be told apart


def draw_curves(runs: Sequence[Curves], path: Path, x: str = "epoch") -> None:
    """Losses, gradients, accuracy and throughput, each a panel if one of the runs knows it.

    The blocks of one run have the colours of a scale. Of several runs each has one colour, pale
    for its first block and full for its last.

    Args:
        runs: From :func:`~man_zoo.analysis.curves.read_curves`.
        path: Where to.
        x: One of :data:`~man_zoo.analysis.curves.AXES`.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    columns = [[key for key in column if _is_known(runs, key)] for column in _COLUMNS]
    rows = zip(*((column[0], column[-1]) for column in columns if column), strict=True)
    panels = figure.subplot_mosaic([list(row) for row in rows])
    styles = [_style(i, len(runs)) for i in range(len(runs))]
    for key, axes in panels.items():
        for run, style in zip(runs, styles, strict=True):
            _draw(axes, run, key, x, style)
        axes.set(title=_title(runs, key), xlabel=_TITLES[x])
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key in OF_BLOCKS:
            _many_magnitudes(axes)
    if "images_per_second" in panels:
        panels["images_per_second"].set_ylim(bottom=0)
    if len(runs) > 1:
        _name_runs(figure, runs, styles)
    elif len(runs[0]["loss_block"]) > 1:
        _name_blocks(figure, [panels[key] for key in columns[0]], runs[0], styles[0])
    save(figure, path, {"x": x, "runs": runs})


def _is_known(runs: Sequence[Curves], key: str) -> bool:
    lists = chain(*(run[key] if key in OF_BLOCKS else [run[key]] for run in runs))
    return any(value is not None for value in chain(*lists))


def _title(runs: Sequence[Curves], key: str) -> str:
    if key != "val_score":
        return _TITLES[key]
    scores = " or ".join(dict.fromkeys(run["score"] for run in runs))
    dotted = " (dotted: of the weight EMA)" if _is_known(runs, "ema_val_score") else ""
    return f"validation {scores}, %{dotted}"


def _style(i: int, count: int) -> Style:
    """Of the i-th run of ``count``."""
    if count == 1:
        return colormaps["plasma_r"], "-"
    scale = LinearSegmentedColormap.from_list("", ["white", COLOURS[i % len(COLOURS)]])
    return scale, _DASHES[i // len(COLOURS) % len(_DASHES)]


def _shades(scale: Colormap, blocks: int) -> list[Any]:
    return [scale(_PALEST + (1 - _PALEST) * (j + 1) / blocks) for j in range(blocks)]


def _draw(axes: Axes, run: Curves, key: str, x: str, style: Style) -> None:
    scale, dashes = style
    if key in OF_BLOCKS:
        for values, shade in zip(run[key], _shades(scale, len(run[key])), strict=True):
            _line(axes, run[x], values, color=shade, linestyle=dashes, linewidth=1)
        return
    dots = {"color": scale(1.0), "marker": "o", "markersize": 3}
    _line(axes, run[x], run[key], linestyle=dashes, **dots)
    if key == "val_score":
        _line(axes, run[x], run["ema_val_score"], linestyle=":", **dots)


def _line(axes: Axes, across: Sequence[Any], values: Sequence[Any], **style: Any) -> None:
    points = [point for point in zip(across, values, strict=True) if None not in point]
    if len(points) > _FEW:
        style["marker"] = ""
    elif len(points) == 1:
        style["marker"] = "o"  # all there is to see
    axes.plot([point[0] for point in points], [point[1] for point in points], **style)


def _many_magnitudes(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_runs(figure: Figure, runs: Sequence[Curves], styles: Sequence[Style]) -> None:
    handles = [Line2D([], [], color=scale(1.0), linestyle=dashes) for scale, dashes in styles]
    labels = [run["label"].replace("$", r"\$") for run in runs]  # no formulas
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    if any(len(run["loss_block"]) > 1 for run in runs):
        figure.suptitle("Left: from the first block, pale, to the last, in the run's full colour")


def _name_blocks(figure: Figure, panels: Sequence[Axes], run: Curves, style: Style) -> None:
    shades = _shades(style[0], len(run["loss_block"]))
    norm = BoundaryNorm([j + 0.5 for j in range(len(shades) + 1)], len(shades))
    mappable = ScalarMappable(norm, ListedColormap(shades))
    ticks = MaxNLocator(integer=True, nbins=8)
    bar = figure.colorbar(
        mappable, ax=list(panels), label="block", location="left", ticks=ticks, aspect=40
    )
    bar.minorticks_off()
