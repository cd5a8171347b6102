"""What all pictures of results share: colours, and a digest of the numbers that they show."""

import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from .files import whole

# Okabe and Ito's colours: told apart by readers who do not see all colours.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_DIGEST = "Numbers"


def save(figure: Any, path: Path, numbers: object) -> None:
    """Write a PNG with the digest of its numbers, whole or not at all."""
    metadata = {_DIGEST: digest(numbers), "Software": None}
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png", metadata=metadata)


def digest(numbers: object) -> str:
    """Hex digest of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def digest_of(path: Path) -> str | None:
    """The digest of the numbers that a picture shows; ``None`` if it has none."""
    with Image.open(path) as image:
        return image.info.get(_DIGEST)
