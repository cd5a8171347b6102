"""What a run tells: JSON lines through Accelerate's trackers, a progress bar, a final table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process
from tqdm import tqdm


class JSONLTracker(GeneralTracker):
    """An Accelerate tracker that appends one JSON object a line.

    Args:
        path: The file; lines of epochs that a resumed run repeats are dropped first.
        epochs: Epochs that are finished; only their lines stay.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path, epochs: int = 0) -> None:
        super().__init__()
        self.path = path
        self._keep(epochs)

    @on_main_process
    def _keep(self, epochs: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        # A line cut short by a kill belongs to no finished epoch.
        complete = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs]
        unfinished = self.path.with_name(f".{self.path.name}")
        unfinished.write_text("".join(complete))
        unfinished.replace(self.path)

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: the flags are in args.yaml beside the log."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


class TrainingBar:
    """Progress over the whole run: losses of the first, middle and last block, speed, time left.

    Args:
        total: Updates of the run.
        done: Updates that an earlier part of the run has made.
        show: Whether this process shows it.
    """

    def __init__(self, total: int, done: int, show: bool) -> None:
        self.bar = tqdm(total=total, initial=done, disable=not show, unit="update", smoothing=0.05)

    def update(self, epoch: str, losses: Sequence[float], images_per_second: float) -> None:
        """One update more."""
        first, middle, last = losses[0], losses[len(losses) // 2], losses[-1]
        self.bar.set_description(epoch, refresh=False)
        text = f"loss {first:.3f}"
        if len(losses) > 1:
            text += f" .. {middle:.3f} .. {last:.3f}"
        self.bar.set_postfix_str(f"{text}, {images_per_second:.0f} images/s", refresh=False)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self.bar.disable:
            self.bar.write(line)

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header, as text in columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [i > 0 for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
