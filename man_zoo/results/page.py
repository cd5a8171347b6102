"""``docs/results.md`` and its pictures, from the results files beside them: ``make results``.

The words stand in ``docs/results/page.md.jinja``; every figure on the page is put there by a
function of this module, from the JSON lines.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..analysis.pictures import PICTURES
from ..console import write_text
from ..console.picture import digest, digest_of
from . import pictures, tables
from .groups import Group, Groups
from .records import read_results
from .sweep import read_sweep

TEMPLATE, PAGE = Path("results/page.md.jinja"), Path("results.md")


def _points(one: Group, other: Group, *keys: str) -> str:
    """How far a score's mean is from another's; top-1 where no keys are given."""
    return tables.difference(*(group.scores(*(keys or ("top1",))) for group in (one, other)))


def _run_of(groups: Groups, rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the rows, each a label and a name, of which there is a result."""
    return [row for row in rows if row[1] in groups]


def _held_out(one: Group, other: Group) -> str:
    """How far its top-1 on the held-out images is from another's."""
    return tables.difference(one.held_out, other.held_out)


def _longer(groups: Groups, names: Mapping[str, str]) -> dict[str, str]:
    """Those longer runs that there are, by the names of the shorter ones."""
    return {short: long for short, long in names.items() if long in groups}


def _ratio(one: Group, other: Group, key: str) -> str:
    """What one costs of another."""
    return f"{one.first[key] / other.first[key]:.2f}"


class Page:
    """The page as text, and the pictures that it shows.

    Args:
        docs: The ``docs`` folder.
    """

    def __init__(self, docs: Path) -> None:
        self.docs = docs
        self.pictures: dict[str, tuple[Any, Callable[[Any, Path], None]]] = {}
        index = docs.parent / "hub" / "index.json"
        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
        self.text = environment.from_string((docs / TEMPLATE).read_text()).render(
            results=self._results,
            not_run=self._not_run,
            top1=lambda group: f"{group.top1:.2f}",
            points=_points,
            below=lambda one, other: _points(other, one).removeprefix("+"),
            held_out=_held_out,
            longer=_longer,
            ratio=_ratio,
            widest=Groups.widest,
            setting=tables.setting,
            methods=tables.methods,
            distances=tables.distances,
            run_of=_run_of,
            ablation=tables.ablation,
            scores=tables.scores,
            heads=tables.heads,
            equal_memory=tables.equal_memory,
            step_costs=tables.by_model(self._json("equal_memory.json")),
            accuracies=tables.accuracies,
            weights=partial(tables.weights, json.loads(index.read_text())),
            published=partial(tables.published, docs.parent / "recipes" / "configs"),
            analysis=self._json("analysis.json"),
            depths=tables.depths,
            draw_analysis=self._analysis,
            draw_arithmetic=self._drawn(pictures.arithmetic_numbers, pictures.draw_arithmetic),
            draw_memory=self._drawn(pictures.memory_numbers, pictures.draw_memory),
            draw_exits=self._drawn(pictures.exits_numbers, pictures.draw_exits),
        )

    def _results(self, name: str) -> Groups:
        return Groups(read_results(self.docs / "results" / name))

    def _json(self, name: str) -> Any:
        return json.loads((self.docs / "results" / name).read_text())

    def _not_run(self, sweep: str, groups: Groups) -> str:
        """Runs of a sweep file that are not among its results, by name and seeds."""
        file = self.docs.parent / "recipes" / "sweeps" / sweep
        _, runs = read_sweep(file, self.docs / "runs", [])
        seeds: dict[str, list[str]] = {}
        for run in runs:
            if not groups.has(run.name, run.seed):
                seeds.setdefault(run.name, []).append(str(run.seed))
        return ", ".join(f"`{name}` (seed {', '.join(seeds[name])})" for name in seeds) or "none"

    def _drawn(
        self, numbers: Callable[..., Any], draw: Callable[[Any, Path], None]
    ) -> Callable[..., str]:
        """A template function that shows a picture under a name and keeps what it is made of."""

        def show(file: str, title: str, *args: Any) -> str:
            self.pictures[file] = numbers(*args), draw
            return f"![{title}](pictures/{file})"

        return show

    def _analysis(self, file: str, title: str, found: dict[str, Any]) -> str:
        return self._drawn(lambda found: found, PICTURES[file])(file, title, found)

    def picture(self, file: str) -> Path:
        """Where a picture is."""
        return self.docs / "pictures" / file

    def stale(self) -> list[str]:
        """The files on disk that do not show the results as they are."""
        page = self.docs / PAGE
        old = [] if page.is_file() and page.read_text() == self.text else [PAGE.name]
        for file, (numbers, _) in self.pictures.items():
            path = self.picture(file)
            if not path.is_file() or digest_of(path) != digest(numbers):
                old.append(file)
        return old

    def write(self) -> list[str]:
        """Write what is stale; its names."""
        old = self.stale()
        for file in old:
            if file in self.pictures:
                numbers, draw = self.pictures[file]
                draw(numbers, self.picture(file))
        write_text(self.docs / PAGE, self.text)
        return old
