"""Scenes made of small pictures pasted onto textured canvases: masks and boxes are exact.

Nothing is stored: scene ``i`` of a seed is drawn anew whenever it is asked for, and is the same on
every process, worker and machine.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.tv_tensors import BoundingBoxes, Mask

OBJECTS = (1, 6)  # the fewest and the most of a scene
TRIES = 30  # at a free place for an object, which is left out then
OVERLAP = 0.1  # of the smaller of two boxes, at most
CONTRAST = 70  # grey levels between an object and the ground around it


class Scene(NamedTuple):
    """A drawn scene.

    Args:
        image: RGB.
        objects: ``(H, W)`` int, which object a pixel shows, counted from 0; -1 is the ground.
        labels: The class of each object.
    """

    image: Image.Image
    objects: np.ndarray
    labels: list[int]


class PastedScenes(Dataset):
    """(PIL image, target) of scenes.

    Args:
        pictures: Objects as PIL images of brightness and opacity (mode LA), and their classes.
        enlargement: The least and the greatest factor on a picture's sides.
        size: Height and width of a scene.
        count: Scenes.
        seed: Of all of them.
        target: What is to be known of a scene.
    """

    def __init__(
        self,
        pictures: Sequence[tuple[Image.Image, int]],
        enlargement: tuple[float, float],
        size: tuple[int, int],
        count: int,
        seed: int,
        target: Callable[[Scene], Any],
    ) -> None:
        self.pictures, self.enlargement, self.size = pictures, enlargement, size
        self.count, self.seed, self.target = count, seed, target

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        scene = self.draw(index)
        return scene.image, self.target(scene)

    def draw(self, index: int) -> Scene:
        """Scene ``index``."""
        rng = np.random.default_rng((self.seed, index))
        canvas, objects = _ground(rng, self.size), np.full(self.size, -1)
        labels: list[int] = []
        boxes: list[tuple[int, ...]] = []
        for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
            picture, label = self.pictures[int(rng.integers(len(self.pictures)))]
            shade, opacity = _enlarge(picture, rng.uniform(*self.enlargement), self.size)
            box = _place(rng, opacity.shape, self.size, boxes)
            if box is None:
                continue
            window = slice(box[0], box[2]), slice(box[1], box[3])
            _paint(rng, canvas[window], shade, opacity)
            objects[window][opacity >= 0.5] = len(labels)
            boxes.append(box)
            labels.append(label)
        image = Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8))
        return Scene(image, objects, labels)


def as_mask(scene: Scene) -> Mask:
    """The class of every pixel, counted from 1; 0 is the ground."""
    classes = np.array([0, *(label + 1 for label in scene.labels)], np.uint8)
    return Mask(torch.from_numpy(classes[scene.objects + 1]))


def as_boxes(scene: Scene) -> dict[str, Tensor]:
    """``boxes`` around what is seen of each object, and its ``labels``."""
    boxes = []
    for number in range(len(scene.labels)):
        rows, columns = np.nonzero(scene.objects == number)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    corners = torch.tensor(np.array(boxes), dtype=torch.float32)
    return {
        "boxes": BoundingBoxes(corners, format="XYXY", canvas_size=scene.objects.shape),  # type: ignore[call-overload]
        "labels": torch.tensor(scene.labels),
    }


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Clouds of colour under fine grain, ``(H, W, 3)`` float32."""
    height, width = size
    cells = rng.uniform(40, 216, (5, 5, 3)).astype(np.uint8)
    clouds = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, rng.uniform(4, 16), (height, width, 1))
    return (np.asarray(clouds) + grain).astype(np.float32)


def _enlarge(
    picture: Image.Image, factor: float, most: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and opacity from 0 to 1, enlarged, without transparent edges."""
    width, height = (
        min(round(side * factor), limit)
        for side, limit in zip(picture.size, reversed(most), strict=True)
    )
    image = picture.resize((width, height), Image.Resampling.BICUBIC)
    shade, opacity = np.moveaxis(np.asarray(image).astype(np.float32) / 255, -1, 0)
    rows, columns = np.nonzero(opacity >= 0.5)
    seen = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    return shade[seen], opacity[seen]


def _place(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    size: tuple[int, int],
    taken: Sequence[tuple[int, ...]],
) -> tuple[int, int, int, int] | None:
    """A box (top, left, bottom, right) that hardly overlaps the others."""
    for _ in range(TRIES):
        top, left = (
            int(rng.integers(whole - part + 1)) for whole, part in zip(size, shape, strict=True)
        )
        box = (top, left, top + shape[0], left + shape[1])
        if all(_overlap(box, other) <= OVERLAP for other in taken):
            return box
    return None


def _overlap(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(height, 0) * max(width, 0) / smaller


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, shade: np.ndarray, opacity: np.ndarray
) -> None:
    """Lay one colour, seen well on this ground, over a part of the canvas."""
    ground = canvas.mean()
    colour = rng.uniform(0, 255, 3)
    while abs(colour.mean() - ground) < CONTRAST:
        colour = rng.uniform(0, 255, 3)
    canvas += opacity[..., None] * (shade[..., None] * colour.astype(np.float32) - canvas)
