"""What an analysis has found: the numbers behind the pictures, as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..training.report import table
from .runs import Run


@dataclass(frozen=True)
class Findings:
    """Accuracies are top-1 on the test images, in percent.

    Args:
        runs: What was looked at, ``R`` runs.
        reference: The run that others are held against.
        depths: The ``D`` units whose output was looked at.
        probes: Of a linear probe, for every run at every depth.
        exits: Of every block's own exit, for every run; ``None`` where it cannot classify.
        cka: ``(R, D, R, D)``.
    """

    runs: Sequence[Run]
    reference: Run
    depths: tuple[int, ...]
    probes: list[list[float]]
    exits: list[list[float | None]]
    cka: Tensor

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Of all units, the stem first."""
        return self.runs[0].units.names

    @property
    def labels(self) -> list[str]:
        """What the runs are called."""
        return [run.label for run in self.runs]

    def top1(self, run: Run) -> float:
        """Of a run's whole network, whose head always classifies."""
        return self.exits[list(self.runs).index(run)][-1]  # type: ignore[return-value]

    def cka_by_depth(self) -> list[list[float]]:
        """CKA of every run with the reference at the same depth, ``R`` lists of ``D``."""
        r = list(self.runs).index(self.reference)
        return self.cka[:, :, r].diagonal(dim1=1, dim2=2).tolist()


def numbers(findings: Findings) -> dict[str, Any]:
    """Everything found, for JSON: ``depths``, ``reference``, ``runs`` and ``cka``.

    ``cka`` has an entry for every pair of runs, with a row for every depth of the first and a
    column for every depth of the second.
    """
    names, cka = findings.unit_names, findings.cka
    runs = [
        {
            "label": run.label,
            "model": run.model.spec.name,
            "seed": run.args.seed,
            "checkpoint": run.checkpoint,
            "probes": probes,
            "exits": [
                {"unit": names[end], "top1": top1}
                for end, top1 in zip(run.ends, exits, strict=True)
            ],
            "cka_with_reference": by_depth,
        }
        for run, probes, exits, by_depth in zip(
            findings.runs, findings.probes, findings.exits, findings.cka_by_depth(), strict=True
        )
    ]
    labels = list(enumerate(findings.labels))
    return {
        "depths": [names[depth] for depth in findings.depths],
        "reference": findings.reference.label,
        "runs": runs,
        "cka": [
            {"rows": row, "columns": column, "values": cka[i, :, j].tolist()}
            for i, row in labels
            for j, column in labels[: i + 1]
        ],
    }


def save_maps(
    findings: Findings, images: Tensor, maps: Sequence[Sequence[Tensor]], path: Path
) -> None:
    """Write feature maps as arrays: ``images``, and ``{label}/{unit}`` for each run and depth.

    Args:
        findings: For runs and depths.
        images: ``(B, C, H, W)``, values 0 to 1.
        maps: For every run at every depth, ``(B, H, W)``.
        path: An ``.npz`` file.
    """
    arrays = {
        f"{run.label}/{findings.unit_names[depth]}": array.numpy()
        for run, at_depths in zip(findings.runs, maps, strict=True)
        for depth, array in zip(findings.depths, at_depths, strict=True)
    }
    arrays["images"] = images.numpy()
    unfinished = path.with_name(f".{path.name}")
    np.savez(unfinished, **arrays)  # type: ignore[arg-type]
    unfinished.replace(path)


def render(findings: Findings) -> str:
    """Three tables, a row for every depth and a column for every run."""
    by_unit = [
        dict(zip(run.ends, exits, strict=True))
        for run, exits in zip(findings.runs, findings.exits, strict=True)
    ]
    own = [[exits.get(depth) for depth in findings.depths] for exits in by_unit]
    return "\n\n".join(
        [
            _columns(findings, "linear probe, top-1 %", findings.probes, 2),
            _columns(findings, "own exit, top-1 %", own, 2),
            _columns(findings, f"CKA with {findings.reference.label}", findings.cka_by_depth(), 3),
        ]
    )


def _columns(
    findings: Findings, title: str, columns: Sequence[Sequence[float | None]], digits: int
) -> str:
    cells = [["-" if v is None else f"{v:.{digits}f}" for v in column] for column in columns]
    names = [findings.unit_names[depth] for depth in findings.depths]
    rows = list(zip(names, *cells, strict=True))
    return f"{title}\n\n{table(('after unit', *findings.labels), rows)}"
