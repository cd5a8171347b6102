"""Where a run leaves its numbers: JSON lines, beside whatever Accelerate tracks with."""

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from ..console import write_text
from .checkpoint import Progress


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
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        # A line cut short by a kill belongs to no finished epoch.
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["epoch"] <= self.progress.epoch]
        write_text(self.path, "".join(kept))

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
