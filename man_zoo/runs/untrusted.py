"""Files of a run are data to us, whoever passed the run on: none of them is run as code.

Tensors are in safetensors, or in pickles that may hold tensors and numbers alone; all else is JSON
and YAML.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from accelerate.utils.other import load
from safetensors import safe_open

from ..console import UserError

_PICKLES = (".bin", ".pkl", ".pt", ".pth")
_FOLDER = "local-dir:"  # what timm calls a model whose files are in a folder


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: If it is missing or not JSON; names it.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON.") from error


def read_pickle(path: Path, **keywords: Any) -> Any:
    """What a pickle of tensors and numbers holds, on the CPU.

    Args:
        path: A file that ``torch.save`` wrote.
        keywords: Of ``torch.load``.

    Raises:
        UserError: If it is no such file, or would need code; names it.
    """
    try:
        return load(path, map_location="cpu", weights_only=True, **keywords)
    except Exception as error:  # there is no telling what a damaged pickle raises
        raise UserError(
            f"{path} is damaged, or holds more than tensors and numbers; it is not loaded, because "
            "that could run code."
        ) from error


def check_files(folder: Path) -> None:
    """Look whether all files of a folder are what their names say, without reading their tensors.

    Raises:
        UserError: If one is not, or could not be read without running code; names it.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix in _PICKLES:
            read_pickle(path, mmap=is_zipfile(path))
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except Exception as error:  # of Rust
                raise UserError(f"{path} is damaged: it is not safetensors.") from error


@contextmanager
def blaming_files_of(model: str) -> Iterator[None]:
    """Let an error of timm's, which loads a model's files, name the one that cannot be read.

    Args:
        model: Name of the model, of which ``local-dir:FOLDER`` has files here.

    Raises:
        UserError: As :func:`check_files`, in place of the error.
    """
    try:
        yield
    except Exception:
        folder = Path(model.removeprefix(_FOLDER))
        if model.startswith(_FOLDER) and folder.is_dir():
            check_files(folder)
        raise
