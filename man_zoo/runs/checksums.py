"""Checksums of a checkpoint's files: written last, and compared before anything of it is read."""

from pathlib import Path

from ..console import UserError, write_json
from ..weights import sha256
from .untrusted import read_json

CHECKSUMS = "checksums.json"


class Damaged(UserError):
    """A checkpoint that is not as it was written; names the file."""


def write_checksums(folder: Path) -> None:
    """Write the sha256 of every file of a checkpoint beside them."""
    write_json(folder / CHECKSUMS, {path.name: sha256(path) for path in _files(folder)})


def compare_checksums(folder: Path) -> None:
    """Read a checkpoint's files, and see whether they are those that were written.

    They tell of accidents. Who means harm writes checksums too, so nothing is run of what they fit.

    Raises:
        Damaged: If one was cut short, altered, lost or added.
    """
    try:
        expected = dict(read_json(folder / CHECKSUMS))
    except (UserError, TypeError, ValueError) as error:
        raise Damaged(f"{folder / CHECKSUMS} is missing or damaged.") from error
    files = {path.name: path for path in _files(folder)}
    for name in sorted(expected.keys() | files.keys()):
        if name not in files:
            raise Damaged(f"{folder / name} is missing.")
        if name not in expected:
            raise Damaged(f"{files[name]} was not there when the checkpoint was written.")
        if not files[name].is_file() or sha256(files[name]) != expected[name]:
            raise Damaged(f"{files[name]} is damaged: it was cut short or altered.")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
