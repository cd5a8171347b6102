"""What a run says in words: its beginning, an epoch, its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import table
from ..data import LoaderInfo
from ..local_model import LocalModel
from ..runs.folder import load_log
from ..tasks import Task
from .observe import GRAD_NORM, PEAK, SECONDS


def describe(model: LocalModel, data: LoaderInfo, run: Path) -> str:
    """Two lines on what is about to be trained."""
    backbone = sum(p.numel() for p in model.backbone.parameters())
    auxiliaries = sum(p.numel() for p in model.auxiliaries.parameters())
    return (
        f"{model.spec.name}: {len(model.blocks)} local block(s), {backbone / 1e6:.2f} M parameters "
        f"and {auxiliaries / 1e6:.2f} M in auxiliaries\n"
        f"{data.name}: {data.train_count} images to train on, {data.val_count} to validate; {run}"
    )


def few_losses(losses: Sequence[float]) -> str:
    """Losses of the first, middle and last block; of the only one, if there is one."""
    few = sorted({0, len(losses) // 2, len(losses) - 1})
    return " .. ".join(f"{losses[j]:.3f}" for j in few)


def epoch_line(epoch: int, record: dict[str, Any], task: Task) -> str:
    """One line on a finished epoch."""
    if "val_loss" not in record:
        return (
            f"epoch {epoch:3d}  loss {few_losses(record['losses'])}  "
            f"{record['images_per_second']:.0f} images/s"
        )
    averaged = record.get(f"ema_val_{task.main_score}")
    ema = "" if averaged is None else f" (EMA {averaged:.2f} %)"
    first, *others = percentages(task, record, "val_")
    return (
        f"epoch {epoch:3d}  loss {few_losses(record['losses'])}  "
        f"val {'  '.join([first + ema, *others])}  "
        f"{record['images_per_second']:.0f} images/s"
    )


def percentages(task: Task | type[Task], scores: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What a task tells of its scores, the main one first, e.g. ``top-1 93.02 %``."""
    return [f"{words} {scores[prefix + key]:.2f} %" for key, words in task.percent.items()]


def final_report(model: LocalModel, summary: dict[str, Any], run: Path) -> str:
    """What every block can do, and how the run ended."""
    task = model.task
    best = f"{task.percent[task.main_score]} {summary[f'best_{task.main_score}']:.2f} %"
    columns = {
        "block": [f"{j + 1}  {model.block_name(j)}" for j in range(len(model.blocks))],
        "train loss": [f"{loss:.3f}" for loss in summary["losses"]],
        f"{task.percent[task.main_score]} %": [
            "-" if score is None else f"{score:.2f}" for score in summary["exits"]
        ],
        **_observed(load_log(run)[-1], len(model.blocks)),
    }
    return "\n".join(
        [
            "",
            table(list(columns), list(zip(*columns.values(), strict=True))),
            "",
            f"{summary['model']} after {summary['epochs']} epochs: "
            f"{', '.join(percentages(task, summary))}, best {best} "
            f"(epoch {summary['best_epoch']}), {summary['seconds']:.0f} s",
            f"checkpoints, log and exported backbone: {run}",
        ]
    )


def _observed(line: dict[str, Any], blocks: int) -> dict[str, list[str]]:
    """Columns of what the log's last line knows of every block, beside its loss."""
    found = {
        key: [line[f"{key}{j + 1}"] for j in range(blocks)]
        for key in (GRAD_NORM, SECONDS, PEAK)
        if all(f"{key}{j + 1}" in line for j in range(blocks))
    }
    columns = {}
    if GRAD_NORM in found:
        columns["grad norm"] = [f"{norm:.3g}" for norm in found[GRAD_NORM]]
    if SECONDS in found:
        whole = sum(found[SECONDS])
        columns["time %"] = [f"{100 * seconds / whole:.1f}" for seconds in found[SECONDS]]
    if PEAK in found:
        columns["peak MiB"] = [f"{peak:.1f}" for peak in found[PEAK]]
    return columns
