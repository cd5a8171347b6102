"""Put an exported folder into the index of published weights."""

import shutil
from dataclasses import asdict
from pathlib import Path

from ..console import UserError, whole_folder, write_json
from ..weights import CARD, CONFIG, INDEX, SMALL, WEIGHTS, Weights, is_installed, read_index, sha256
from .card import card_of, is_dense, read_metadata


def add_to_index(
    folder: Path, repository: str | None = None, revision: str | None = None
) -> Weights:
    """Put an exported folder into the index, in place of an entry of the same title.

    Args:
        folder: As :func:`man_zoo.hub.export.export_run` writes it.
        repository: ``ORG/NAME`` that it was pushed to.
        revision: The commit there.

    Raises:
        UserError: If the folder is no export, or one for a dense task, the index cannot be read, or
            there is no checkout for it.
    """
    if is_installed():
        raise UserError(
            f"{folder} is not put into the index: that is one of a checkout of man_zoo, and this is "
            "an installed package."
        )
    entries = read_index()
    metadata = read_metadata(folder)
    if is_dense(metadata):
        raise UserError(
            f"{folder} has weights for {metadata['task']}, and the index is one of classifiers; "
            "push them to the Hub, or use them from their folder."
        )
    file = folder / WEIGHTS
    weights = Weights(
        metadata["name"],
        metadata["tag"],
        sha256(file),
        file.stat().st_size,
        metadata["metrics"],
        repository,
        revision,
    )
    with whole_folder(weights.folder) as unfinished:
        (unfinished / CARD).write_text(card_of(folder, repository))
        for name in (CONFIG, *([WEIGHTS] if weights.size < SMALL else [])):
            shutil.copyfile(folder / name, unfinished / name)
    entries[weights.title] = weights
    write_json(weights.folder.parent / INDEX, [asdict(entries[title]) for title in sorted(entries)])
    return weights
