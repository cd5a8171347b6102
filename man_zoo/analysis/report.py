"""What an analysis has found: the numbers behind the pictures, for JSON and as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..console import table, whole
from .runs import Run, reference_run


def numbers(
    runs: Sequence[Run],
    depths: Sequence[int],
    probes: Sequence[list[float]],
    exits: Sequence[list[float | None]],
    cka: Tensor,
) -> dict[str, Any]:
    """Everything found: ``units``, ``depths``, ``reference``, ``runs`` and ``cka``.

    ``cka`` has an entry for every pair of runs, with a row for every depth of the first and a
    column for every depth of the second. Accuracies are top-1 on the test images, in percent.

    Args:
        runs: What was looked at, ``R`` runs.
        depths: The ``D`` units whose output was looked at.
        probes: Of a linear probe, for every run at every depth.
        exits: Of every block's own exit, for every run; ``None`` where it cannot classify.
        cka: ``(R, D, R, D)``.
    """
    names, reference = runs[0].units.names, reference_run(runs)
    with_reference = cka[:, :, list(runs).index(reference)].diagonal(dim1=1, dim2=2)
    return {
        "units": list(names),
        "depths": [names[depth] for depth in depths],
        "reference": reference.label,
        "runs": [
            {
                "label": run.label,
                "model": run.model.spec.name,
                "seed": run.args.seed,
                "checkpoint": run.checkpoint,
                "probes": probes[i],
                "exits": [
                    {"unit": names[end], "top1": top1}
                    for end, top1 in zip(run.ends, exits[i], strict=True)
                ],
                "cka_with_reference": with_reference[i].tolist(),
            }
            for i, run in enumerate(runs)
        ],
        "cka": [
            {"rows": row.label, "columns": column.label, "values": cka[i, :, j].tolist()}
            for i, row in enumerate(runs)
            for j, column in enumerate(runs[: i + 1])
        ],
    }


def save_maps(
    runs: Sequence[Run],
    depths: Sequence[int],
    images: Tensor,
    maps: Sequence[Sequence[Tensor]],
    path: Path,
) -> None:
    """Write feature maps as arrays: ``images``, and ``{label}/{unit}`` for each run and depth.

    Args:
        runs: Whose maps.
        depths: At which units.
        images: ``(B, C, H, W)``, values 0 to 1.
        maps: For every run at every depth, ``(B, H, W)``.
        path: An ``.npz`` file.
    """
    arrays: dict[str, Any] = {
        f"{run.label}/{run.units.names[depth]}": array.numpy()
        for run, at_depths in zip(runs, maps, strict=True)
        for depth, array in zip(depths, at_depths, strict=True)
    }
    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, images=images.numpy(), **arrays)


def render(found: dict[str, Any]) -> str:
    """Three tables, a row for every depth and a column for every run.

    Args:
        found: As :func:`numbers` gives it.
    """
    runs = found["runs"]
    exits = [{exit["unit"]: exit["top1"] for exit in run["exits"]} for run in runs]
    return "\n\n".join(
        [
            _columns(found, "linear probe, top-1 %", [run["probes"] for run in runs], 2),
            _columns(
                found,
                "own exit, top-1 %",
                [[own.get(depth) for depth in found["depths"]] for own in exits],
                2,
            ),
            _columns(
                found,
                f"CKA with {found['reference']}",
                [run["cka_with_reference"] for run in runs],
                3,
            ),
        ]
    )


def _columns(
    found: dict[str, Any], title: str, columns: Sequence[Sequence[float | None]], digits: int
) -> str:
    cells = [["-" if v is None else f"{v:.{digits}f}" for v in column] for column in columns]
    labels = [run["label"] for run in found["runs"]]
    rows = list(zip(found["depths"], *cells, strict=True))
    return f"{title}\n\n{table(('after unit', *labels), rows)}"
