"""Files and folders that are whole or not there: written under another name, then renamed."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# How torch says that a file could not be written; it does not say why.
_TORCHS_WRITER = re.compile("PytorchStreamWriter|inline_container")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Let all that writes below ``path`` fail alike, as Rust (safetensors) and C++ (torch) do not.

    Raises:
        OSError: For what the disk refuses, with ``path`` in it if it names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except RuntimeError as error:
        if not _TORCHS_WRITER.search(str(error)):
            raise
        said = "torch could not finish a file; is the disk full?"
        raise OSError(errno.EIO, said, str(path)) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under; it becomes ``path`` if all goes well, else it is removed.

    Raises:
        OSError: As :func:`disk_errors`.
    """
    unfinished = path.with_name(f".{path.name}")
    try:
        with disk_errors(unfinished):
            yield unfinished
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):  # of what stopped us, there is no place to write in
            unfinished.unlink()
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder to write into; it becomes ``path``, in place of what was there.

    Raises:
        OSError: As :func:`disk_errors`.
    """
    unfinished, old = (path.with_name(f".{path.name}{end}") for end in ("", ".old"))
    remove(unfinished)
    unfinished.mkdir(parents=True)
    try:
        with disk_errors(unfinished):
            yield unfinished
        remove(old)
        if path.exists():
            path.rename(old)
        unfinished.rename(path)
    except BaseException:
        remove(unfinished)
        raise
    remove(old)


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")
