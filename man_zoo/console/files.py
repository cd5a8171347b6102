"""Files and folders that are whole or not there: written under another name, then renamed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under; it becomes ``path`` if all goes well, else it is removed."""
    unfinished = path.with_name(f".{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder to write into; it becomes ``path``, in place of what was there."""
    unfinished, old = (path.with_name(f".{path.name}{end}") for end in ("", ".old"))
    remove(unfinished)
    unfinished.mkdir(parents=True)
    try:
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
