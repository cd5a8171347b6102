"""Pictures of images beside what is true and what is predicted of them."""

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from ..console import whole
from ..console.picture import COLOURS
from .iou import IGNORED
from .mean_average_precision import NO_BOX

Draw = Callable[..., Image.Image]
"""As :func:`draw_masks` and :func:`draw_boxes`."""

_SIDE = 256  # pixels, about, that a smaller image is enlarged to
_TEXT = 14  # pixels
_GAP = 6


def draw_masks(
    images: Tensor,
    masks: Sequence[Tensor],
    names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """A row an image: itself, then every mask over it; the classes' colours below.

    Args:
        images: ``(B, C, H, W)``, normalised.
        masks: Classes ``(B, H, W)``: truth, and predictions if there are any. 255 is black.
        names: Of the classes.
        mean: That the images are normalised with.
        std: The same.
    """
    colours = palette(len(names))
    shown, factor = _readable(images, mean, std)

    def over(image: Tensor, mask: Tensor) -> Tensor:
        mask = mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        classes = torch.stack([mask == number for number in range(len(names))])
        drawn = draw_segmentation_masks(image, classes, alpha=0.6, colors=colours)
        return drawn * (mask != IGNORED)

    return _with_key(_grid(shown, masks, over), names, colours)


def draw_boxes(
    images: Tensor,
    boxes: Sequence[Sequence[Tensor]],
    names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """A row an image: itself with the true boxes, then with those that were found.

    Args:
        images: As for :func:`draw_masks`.
        boxes: Of every image ``(N, 5)``, x1, y1, x2, y2, class, or ``(N, 6)``, with a score before
            the class: truth, and found ones if there are any.
        names: Of the classes.
        mean: That the images are normalised with.
        std: The same.
    """
    colours = palette(len(names))
    shown, factor = _readable(images, mean, std)

    def over(image: Tensor, rows: Tensor) -> Tensor:
        rows = rows[rows[:, -1] != NO_BOX]
        numbers = rows[:, -1].int().tolist()
        labels = [names[number] for number in numbers]
        if rows.shape[1] == 6:
            scores = rows[:, 4].tolist()
            labels = [f"{label} {score:.0%}" for label, score in zip(labels, scores, strict=True)]
        if not numbers:
            return image
        return draw_bounding_boxes(
            image,
            rows[:, :4] * factor,
            labels,
            colors=[colours[number] for number in numbers],
            width=2,
            fill_labels=True,
        )

    return _grid(shown, boxes, over)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with whole(path) as unfinished:
        picture.save(unfinished, format="PNG")


def palette(count: int) -> list[tuple[int, ...]]:
    """Colours that are told apart, as far as so many can be."""
    if count < len(COLOURS):
        return [ImageColor.getrgb(colour) for colour in COLOURS[1 : count + 1]]
    hues = [number * 0.618034 % 1 for number in range(count)]  # the golden angle
    rings = [colorsys.hsv_to_rgb(hue, 0.85, 0.6 + 0.4 * (k % 2)) for k, hue in enumerate(hues)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rings]


def _readable(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, int]:
    """Images ``(B, 3, H, W)`` uint8 in their colours, enlarged by a whole factor, and that."""
    images = images.detach().float().cpu()
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = ((images * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)
    factor = max(1, round(_SIDE / max(images.shape[2:])))
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return pixels.expand(-1, 3, -1, -1), factor


def _grid(
    images: Tensor, columns: Sequence[Any], over: Callable[[Tensor, Tensor], Tensor]
) -> Image.Image:
    shown = []
    for row, image in enumerate(images):
        shown += [image, *(over(image, column[row].cpu()) for column in columns)]
    grid = make_grid(shown, nrow=1 + len(columns), padding=_GAP, pad_value=255)
    return to_pil_image(grid)


def _with_key(
    picture: Image.Image, names: Sequence[str], colours: Sequence[tuple[int, ...]]
) -> Image.Image:
    """The picture with a line of coloured squares and names below it, or several."""
    font = ImageFont.load_default(_TEXT)
    step = _TEXT + _GAP + round(max(font.getlength(name) for name in names)) + 2 * _GAP
    across = max(1, (picture.width - _GAP) // step)
    lines = -(-len(names) // across)
    result = Image.new("RGB", (picture.width, picture.height + lines * (_TEXT + _GAP)), "white")
    result.paste(picture)
    draw = ImageDraw.Draw(result)
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        left = _GAP + number % across * step
        top = picture.height + number // across * (_TEXT + _GAP)
        draw.rectangle((left, top, left + _TEXT - 2, top + _TEXT - 2), fill=colour)
        draw.text((left + _TEXT + _GAP, top - 2), name, fill="black", font=font)
    return result
