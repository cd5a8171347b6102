"""What a run was, beside its flags: the data it found and the machine it ran on."""

import json
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

from .data import LoaderInfo
from .errors import UserError


def save_facts(path: Path, data: LoaderInfo, device: torch.device) -> None:
    """Write the facts as JSON."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps({"data": asdict(data), "machine": machine(device)}, indent=2))
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
    """The line of ``log.jsonl`` on an epoch, with the seconds of the run until then."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    until = [record for record in records if record["epoch"] <= epoch]
    return until[-1] | {"seconds": sum(record["seconds"] for record in until)}


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


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()
