"""How runs went, epoch by epoch: losses, accuracy, throughput and gradients, from their logs."""

import os
from collections.abc import Sequence
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from ..console import UserError, table, user_errors
from ..runs.folder import ARGS, LOG, load_log
from ..tasks import TASKS, Classification, Task

Curves = dict[str, Any]  # of a run, as read_curves gives them

AXES = ("epoch", "seconds", "update")
OF_BLOCKS = ("loss_block", "grad_norm_block")
OF_NETWORK = ("val_score", "ema_val_score", "images_per_second")


def read_curves(folders: Sequence[Path]) -> list[Curves]:
    """What the logs of runs say, as JSON can hold it; a folder named twice counts once.

    Returns:
        Of every run its ``label``, and words for its ``score``; for each of its epochs where it is
        on the :data:`AXES` and what it knows of the network, ``None`` where it does not; and such a
        list for every block, in lists named by :data:`OF_BLOCKS`, which are empty where the log
        does not have them.

    Raises:
        UserError: For a folder that is no run, has no finished epoch, or a log that is damaged.
    """
    paths = list(dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders))
    return [
        {"label": label, **_read(path)} for label, path in zip(_labels(paths), paths, strict=True)
    ]


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last part of every path, and as many before it as it takes to tell them apart."""
    parts = 1
    while True:
        labels = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(labels)) == len(paths):
            return labels
        parts += 1


def _read(run: Path) -> Curves:
    if not (run / ARGS).is_file():
        raise UserError(f"{run}: there is no run ({run / ARGS} is missing).")
    lines = load_log(run) if (run / LOG).is_file() else []
    if not lines:
        raise UserError(f"{run} has finished no epoch yet; there is nothing to draw.")

    def values(key: str) -> list[float | None]:
        about = f"{run / LOG} is damaged: {key}"
        with user_errors(TypeError, ValueError, OverflowError, about=about):
            return [None if line.get(key) is None else float(line[key]) for line in lines]

    def of_blocks(key: str) -> list[list[float | None]]:
        blocks = next(j for j in count() if not any(f"{key}{j + 1}" in line for line in lines))
        return [values(f"{key}{j + 1}") for j in range(blocks)]

    task = _task(lines)
    curves: Curves = {
        "epoch": values("epoch"),
        "seconds": list(accumulate(seconds or 0 for seconds in values("seconds"))),
        "update": values("step"),
        "score": task.percent[task.main_score],
        **{key: values(key.replace("score", task.main_score)) for key in OF_NETWORK},
        **{key: of_blocks(key) for key in OF_BLOCKS},
    }
    if not curves["loss_block"]:
        raise UserError(f"{run / LOG} is damaged: no line has a loss.")
    return curves


def _task(lines: Sequence[dict[str, Any]]) -> type[Task]:
    """The task whose main score the lines have."""
    named = [task for task in TASKS.values() if any(f"val_{task.main_score}" in x for x in lines)]
    return named[0] if named else Classification


def render(runs: Sequence[Curves]) -> str:
    """A table of how the runs stand, for a terminal."""
    header = ("run", "epochs", "seconds", "images/s", "loss, first block", "last block",
              "val %", "best %", "at epoch")  # fmt: skip
    return table(header, [_row(run) for run in runs])


def _row(run: Curves) -> list[str]:
    validated = [
        (score, epoch)
        for score, epoch in zip(run["val_score"], run["epoch"], strict=True)
        if score is not None
    ]
    best, epoch = max(validated, key=lambda pair: pair[0], default=(None, None))
    last, _ = validated[-1] if validated else (None, None)
    first_loss, last_loss = (run["loss_block"][j][-1] for j in (0, -1))
    return [
        run["label"],
        _number(run["epoch"][-1], ".0f"),
        _number(run["seconds"][-1], ".0f"),
        _number(run["images_per_second"][-1], ".0f"),
        _number(first_loss, ".3f"),
        _number(last_loss, ".3f"),
        _number(last, ".2f"),
        _number(best, ".2f"),
        _number(epoch, ".0f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
