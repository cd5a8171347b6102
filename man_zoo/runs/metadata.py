"""What a run was, beside its flags: the data it found, the machine and the commit it ran on."""

import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from ..console import UserError, user_errors, write_json
from ..data import LoaderInfo
from .folder import METADATA
from .untrusted import read_json


@dataclass(frozen=True)
class Metadata:
    """Metadata of a run.

    Args:
        data: What the loaders found.
        machine: As :func:`machine` gives it.
        commit: Of the checkout that trained, with a ``+`` if files differed from it; ``None`` if
            the library was installed.
    """

    data: LoaderInfo
    machine: dict[str, Any]
    commit: str | None


def save_metadata(run: Path, data: LoaderInfo, device: torch.device) -> None:
    """Write the metadata of a run that begins here and now."""
    write_json(run / METADATA, asdict(Metadata(data, machine(device), _commit())))


def load_metadata(run: Path) -> Metadata:
    """The metadata of a run.

    Raises:
        UserError: If the run has none, or what it has is damaged.
    """
    path = run / METADATA
    if not path.is_file():
        raise UserError(f"{run}: the run has no {METADATA}; --resume {run} writes it.")
    values = read_json(path)
    with user_errors(TypeError, AttributeError, KeyError, about=f"{path} is damaged"):
        data: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("data").items()
        }
        return Metadata(LoaderInfo(**data), **values)


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
