"""Where a run leaves its numbers: JSON lines, beside whatever Accelerate tracks with."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    TensorBoardTracker,
    get_available_trackers,
    on_main_process,
)
from accelerate.utils import LoggerType

from ..console import user_errors, write_text
from ..messages import unknown
from ..runs.config import settings
from ..runs.folder import LOG, load_log
from .checkpoint import Progress

PROJECT = "man_zoo"  # what trackers of many runs keep ours under


def tracker_names(log_with: str) -> list[str]:
    """The names in ``--log-with``.

    Raises:
        ValueError: For a name that Accelerate does not know, and a tracker that is not installed.
    """
    if log_with == "none":
        return []
    names = list(dict.fromkeys(log_with.split(",")))
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown("tracker", name, [*sorted(LOGGER_TYPE_TO_CLASS), "none"])
        if name in LoggerType.list() and name not in installed:
            raise ValueError(f"--log-with {name}: {name} is not installed; try pip install {name}.")
    return names


def start_trackers(
    accelerator: Accelerator, args: Namespace, run: Path, progress: Progress, done: int
) -> None:
    """Begin to log, to ``log.jsonl`` and to what ``--log-with`` names.

    Args:
        accelerator: What logs.
        args: Flags of the run.
        run: Its folder.
        progress: How far it is.
        done: Updates that an earlier part of it has made.

    Raises:
        UserError: If a tracker cannot start, for want of a login perhaps; the run can be resumed.
    """
    # Made here, because its folder would have the project's name. It forgets what it has from
    # purge_step on: of an epoch that was not finished, or whose checkpoint is damaged.
    own = {"tensorboard": TensorBoardTracker("tensorboard", run, purge_step=done + 1)}
    named = [own.get(name, name) for name in tracker_names(args.log_with)]
    accelerator.log_with = [JSONLTracker(run / LOG, progress), *named]
    with user_errors(Exception, about=f"--log-with {args.log_with}"):
        accelerator.init_trackers(PROJECT, init_kwargs=_keywords(run.resolve()))
        for tracker in accelerator.trackers:
            if tracker.name != "tensorboard":  # which would show the flags as another run
                tracker.store_init_configuration(settings(args))


def _keywords(run: Path) -> dict[str, dict[str, str]]:
    """How each tracker is told the name of a run, and where to keep what it keeps here."""
    return {
        "clearml": {"task_name": run.name},
        "dvclive": {"dir": str(run / "dvclive")},
        "mlflow": {"run_name": run.name},
        "swanlab": {"experiment_name": run.name, "logdir": str(run / "swanlab")},
        "trackio": {"name": run.name},
        "wandb": {"name": run.name, "dir": str(run)},
    }


class JSONLTracker(GeneralTracker):
    """An Accelerate tracker that appends one JSON object a line.

    Args:
        path: The file.
        progress: How far the run is when trackers start: lines of epochs that a resumed run
            repeats are dropped then.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__()
        self.path, self.progress = path, progress

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def start(self) -> None:
        lines = load_log(self.path.parent) if self.progress.epoch else []
        kept = [line for line in lines if line["epoch"] <= self.progress.epoch]
        write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        # Not appended: a disk that is full would be left with half a line.
        write_text(self.path, self.path.read_text() + json.dumps({"step": step, **values}) + "\n")
