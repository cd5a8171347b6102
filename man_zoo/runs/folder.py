"""What a run folder holds, by name."""

import json
from pathlib import Path
from typing import Any

from ..console import UserError

ARGS = "args.yaml"  # every flag
METADATA = "metadata.json"  # the data that was found, the machine, the commit
LOG = "log.jsonl"  # one line an epoch
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"  # how a finished run ended: the last thing that is written
EXPORT, EXPORT_EMA = "export", "export-ema"


def load_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, one an epoch."""
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def load_epoch(run: Path, epoch: int) -> dict[str, Any]:
    """The line of a run's log on an epoch, with the seconds of the run until then.

    Raises:
        UserError: If the epoch was not validated.
    """
    until = [line for line in load_log(run) if line["epoch"] <= epoch]
    if "val_top1" not in until[-1]:
        raise UserError(f"{run} was not validated after epoch {epoch}; expected 'best'.")
    return until[-1] | {"seconds": sum(line["seconds"] for line in until)}
