"""Folders of images: where the splits are, and what in them would mislead a reader."""

import os
from difflib import get_close_matches
from pathlib import Path

from timm.data.readers import get_img_extensions

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("val", "valid", "validation", "eval", "evaluation", "test", "testing"),
}


def find_split(data_dir: str, given: str | None, kind: str) -> Path:
    """The folder or tar file of a split, looked for under timm's synonyms and "test".

    Args:
        data_dir: The folder of both splits.
        given: The split's name; its synonyms are tried if there is none.
        kind: ``"train"`` or ``"test"``.

    Raises:
        FileNotFoundError: If the folder or the split is missing.
    """
    root = Path(data_dir)
    if not root.is_dir():
        present = [path.name for path in root.parent.glob("*") if path.is_dir()]
        raise FileNotFoundError(
            f"--data-dir {data_dir} is not a directory; expected one with train/ and test/ (or "
            f"train.tar and test.tar) in it.{nearest(root.name, present)}"
        )
    names = (given,) if given else SPLIT_NAMES[kind]
    for name in names:
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    present = sorted(p.name for p in root.iterdir())
    raise FileNotFoundError(
        f"{data_dir} has no {given or kind} split; expected a folder or .tar file called "
        f"{' or '.join(names)}.{nearest(names[-1] if kind == 'test' else names[0], present)}"
    )


def nearest(name: str, present: list[str]) -> str:
    """The end of a sentence: which of the names that are there is meant."""
    near = get_close_matches(name, present, n=1, cutoff=0.0)
    return f" The nearest name there is {near[0]!r}." if near else ""


def check_folder(folder: Path) -> None:
    """Refuse what timm's reader would follow or wait for without end.

    Raises:
        ValueError: For a link to a folder above it, whose images would count again and again, and
            for a pipe, a device or a link to nothing under the name of an image.
        OSError: For a folder that cannot be read, whose images would be left out.
    """
    extensions = get_img_extensions(as_set=True)
    waiting: list[tuple[str, tuple]] = [(str(folder), ())]
    while waiting:
        path, above = waiting.pop()
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise ValueError(
                f"{path} is a link to a folder that it lies in, and its images would count again; "
                "expected folders without such a link."
            )
        for entry in os.scandir(path):
            if entry.is_dir():
                waiting.append((entry.path, (*above, identity)))
            elif not entry.is_file() and os.path.splitext(entry.name)[1].lower() in extensions:
                raise ValueError(
                    f"{entry.path} is a pipe, a device or a link to nothing; expected a file."
                )
