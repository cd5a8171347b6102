"""The page docs/models.md: which of timm's models can be split, and into how many units.

Run ``python -m man_zoo.families.table > docs/models.md``; it takes minutes, because it makes every
model of timm, without weights.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import timm
import torch
from timm.layers import Format
from tqdm import tqdm

from ..layout import Layout
from . import list_units

COMMAND = "python -m man_zoo.families.table > docs/models.md"


@dataclass(frozen=True)
class Row:
    """What is known of one model.

    Args:
        name: timm name.
        architecture: Name of its class.
        units: Number of units, the largest K; 0 for a model that cannot be split.
        layout: How features lie between units, e.g. ``"NCHW"``.
    """

    name: str
    architecture: str
    units: int = 0
    layout: str = ""


def survey(names: Iterable[str]) -> list[Row]:
    """Look at models by name; each is made on the meta device, so it costs no memory."""
    rows = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        architecture = type(model).__name__
        try:
            units = list_units(model)
        except ValueError:
            rows.append(Row(name, architecture))
            continue
        rows.append(Row(name, architecture, len(units), _describe(units.layout)))
    return rows


def _describe(layout: Layout) -> str:
    prefix = layout.format is Format.NLC and layout.prefix_tokens
    return f"{layout.format.value}, prefix" if prefix else layout.format.value


def render(rows: Sequence[Row]) -> str:
    """The page, in Markdown."""
    split: dict[str, list[Row]] = defaultdict(list)
    whole: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        (split if row.units else whole)[row.architecture].append(row)
    count = sum(map(len, split.values()))
    parts = [
        "# Models\n",
        f"man_zoo splits {count} of the {len(rows)} models of timm {timm.__version__}. A unit is "
        "the smallest piece between two cuts; K is from 1 to the number of units. Any of the names "
        "goes into `man_zoo.localize(name, method, k=...)`.\n",
        f"Made with torch {torch.__version__.partition('+')[0]} by `{COMMAND}`.\n",
        "## Families\n",
        "| class | models | units | example | features between units |",
        "| --- | --- | --- | --- | --- |",
        *(_family(name, family) for name, family in _by_size(split)),
        "\nNLC features are tokens; `prefix` says that class or register tokens stand before the "
        "patches.\n",
        "## All names\n",
        "With the number of units.\n",
        *(_names(name, family) for name, family in sorted(split.items())),
        "## Not split\n",
        "Classes without an adapter, and models whose blocks share a tensor that is computed anew "
        "in every forward pass.\n",
        "| class | models | example |",
        "| --- | --- | --- |",
        *(f"| {name} | {len(f)} | `{f[0].name}` |" for name, f in _by_size(whole)),
    ]
    return "\n".join(parts) + "\n"


def _by_size(families: dict[str, list[Row]]) -> list[tuple[str, list[Row]]]:
    return sorted(families.items(), key=lambda item: (-len(item[1]), item[0]))


def _family(name: str, rows: list[Row]) -> str:
    smallest, largest = min(r.units for r in rows), max(r.units for r in rows)
    units = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    example = next((r.name for r in rows if not r.name.startswith("test_")), rows[0].name)
    layouts = " or ".join(sorted({r.layout for r in rows}))
    return f"| {name} | {len(rows)} | {units} | `{example}` | {layouts} |"


def _names(name: str, rows: list[Row]) -> str:
    return f"**{name}**: " + ", ".join(f"{r.name} {r.units}" for r in rows) + "\n"


if __name__ == "__main__":
    # Without the names that man_zoo adds to timm's registry.
    names = [n for n in timm.list_models() if timm.model_entrypoint(n).__module__[:5] == "timm."]
    sys.stdout.write(render(survey(tqdm(names, desc="models", file=sys.stderr))))
