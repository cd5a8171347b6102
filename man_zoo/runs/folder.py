"""What a run folder holds, by name, and what may be one."""

import json
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from ..console import UserError, user_errors

ARGS = "args.yaml"  # every flag
METADATA = "metadata.json"  # the data that was found, the machine, the commit
LOG = "log.jsonl"  # one line an epoch
CHECKPOINTS = "checkpoints"
BEST = "best"  # among the checkpoints: a link to the best
SUMMARY = "summary.json"  # how a finished run ended: the last thing that is written
EXPORT, EXPORT_EMA = "export", "export-ema"


def folder_name(text: str) -> str:
    """A ``type`` of argparse: the name of a folder right below another, and in plain sight.

    Raises:
        ArgumentTypeError: For a path, and for nothing.
    """
    if not text or text.startswith(".") or re.search(r"[/\\\0]", text):
        raise ArgumentTypeError(
            f"expected the name of a folder, without / and no dot in front, got {text!r}"
        )
    return text


def check_links(run: Path) -> None:
    """See that what is written into a run stays there, whoever made the folder.

    Raises:
        UserError: For a link where a run writes; names it.
    """
    for path in (*run.glob("*"), *(run / CHECKPOINTS).glob("*")):
        if path.is_symlink() and path != run / CHECKPOINTS / BEST:
            raise UserError(f"{path} is a link; a run has files and folders of its own.")


def load_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, one an epoch; not one that a kill cut short.

    Raises:
        UserError: If there is no log, or another line is damaged.
    """
    path = run / LOG
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    with user_errors(ValueError, RecursionError, about=f"{path} is damaged"):
        *whole, _ = path.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(line) for line in whole]
    for line in lines:
        if not isinstance(line, dict) or not isinstance(line.get("epoch"), int):
            raise UserError(f"{path} is damaged: a line has no epoch.")
    return lines


def load_epoch(run: Path, epoch: int) -> dict[str, Any]:
    """The line of a run's log on an epoch, with the seconds of the run until then.

    Raises:
        UserError: If the epoch was not validated, or the log has lost it.
    """
    until = [line for line in load_log(run) if line["epoch"] <= epoch]
    if not until or until[-1]["epoch"] != epoch:
        raise UserError(f"{run / LOG} is damaged: it has no epoch {epoch}.")
    if "val_loss" not in until[-1]:
        raise UserError(f"{run} was not validated after epoch {epoch}; expected 'best'.")
    return until[-1] | {"seconds": sum(line["seconds"] for line in until)}
