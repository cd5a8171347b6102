"""The progress bar of a run."""

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from .report import few_losses

LINES_EVERY = 30.0  # seconds between the bar's lines in a log file


class TrainingBar:
    """One bar over the whole run: losses of the first, middle and last block, speed, time left.

    Where standard error is no terminal, a line now and then instead.

    Args:
        total: Updates of the run.
        done: Updates that an earlier part of the run has made.
        show: Whether this process shows it.
    """

    def __init__(self, total: int, done: int, show: bool) -> None:
        for_file: dict[str, Any] = {"file": _Lines(), "mininterval": LINES_EVERY, "delay": 1e-9}
        self.bar = tqdm(
            total=total,
            initial=done,
            disable=not show,
            unit="update",
            smoothing=0.05,
            dynamic_ncols=True,
            **({} if sys.stderr.isatty() else for_file),
        )

    def show(self, epoch: int, losses: Sequence[float], images_per_second: float) -> None:
        """Show these losses ``(K,)`` from the next advance on; ``epoch`` is counted from 1."""
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        text = f"loss {few_losses(losses)}, {images_per_second:.0f} images/s"
        self.bar.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        """A line above the bar, on standard output."""
        if not self.bar.disable:
            self.bar.write(line)

    def advance(self) -> None:
        """One update more."""
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


class _Lines:
    """Standard error for tqdm, each of its states on a line of its own."""

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
