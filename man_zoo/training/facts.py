"""What a run was, beside its flags: the data it found and the machine it ran on."""

import json
import platform
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

from ..data import LoaderInfo
from .errors import UserError

SUMMARY = "summary.json"  # how a finished run ended


def save_facts(path: Path, data: LoaderInfo, device: torch.device) -> None:
    """Write the facts as JSON."""
    save_json(path, {"data": asdict(data), "machine": machine(device), "commit": _commit()})


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(values, indent=2))
    unfinished.replace(path)


def load_facts(run: Path) -> tuple[LoaderInfo, dict[str, Any]]:
    """The data of a run, and its machine.

    Raises:
        UserError: If the run has none.
    """
    path = run / "facts.json"
    if not path.is_file():
        raise UserError(f"{run}: the run has no facts.json; --resume {run} writes it.")
    facts = json.loads(path.read_text())
    data: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in facts["data"].items()
    }
    return LoaderInfo(**data), facts["machine"]


def load_record(run: Path, epoch: int) -> dict[str, Any]:
    """The line of ``log.jsonl`` on an epoch, with the seconds of the run until then.

    Raises:
        UserError: If the epoch was not validated.
    """
    until = [record for record in load_log(run) if record["epoch"] <= epoch]
    if "val_top1" not in until[-1]:
        raise UserError(f"{run} was not validated after epoch {epoch}; expected 'best'.")
    return until[-1] | {"seconds": sum(record["seconds"] for record in until)}


def load_log(run: Path) -> list[dict[str, Any]]:
    """The lines of ``log.jsonl``, one an epoch."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def machine(device: torch.device) -> dict[str, Any]:
    """Where figures come from."""
    return {
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _commit() -> str | None:
    """The commit of this checkout, with a ``+`` if files differ from it; ``None`` if installed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()
