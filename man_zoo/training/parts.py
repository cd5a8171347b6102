"""The weights of a checkpoint in one file, though each process has the weights of some blocks."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_part(module: nn.Module, path: Path, part: int) -> None:
    """Write what this process has of a module; :func:`join_parts` makes ``path`` of all parts.

    Args:
        module: Whose tensors on the ``meta`` device others have.
        path: Of the whole.
        part: This process's number among them, from 0.
    """
    save_file({name: t.contiguous() for name, t in _held(module).items()}, _part(path, part))


def join_parts(path: Path) -> None:
    """Put the parts of a module together, when all have been written; the parts go."""
    parts = sorted(path.parent.glob(_part(path, "*").name))
    if len(parts) == 1:
        parts[0].rename(path)
        return
    save_file({name: tensor for part in parts for name, tensor in load_file(part).items()}, path)
    for part in parts:
        part.unlink()


def load_part(module: nn.Module, path: Path) -> None:
    """Load what this process has of a module.

    Raises:
        RuntimeError: If the file is of another module.
    """
    held = _held(module)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        if others := names ^ module.state_dict().keys():
            raise RuntimeError(f"{min(others)} is in one of file and model alone")
        module.load_state_dict({name: file.get_tensor(name) for name in held}, strict=False)


def _held(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if not tensor.is_meta}


def _part(path: Path, part: int | str) -> Path:
    return path.with_name(f".{path.name}.{part}")
