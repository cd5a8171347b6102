"""What is done to an image and to what is known of it, together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image, Mask

from ...tasks.iou import IGNORED
from ...tasks.mean_average_precision import NO_BOX
from ..info import DenseRecipe


class Fit(v2.Transform):
    """Resize to the largest size that fits into a frame, times a random factor.

    ``v2.ScaleJitter`` takes its frame as (width, height) and loses a pixel to rounding; v2's masks
    are resized half a pixel off.

    Args:
        frame: Height and width.
        scale: The least and the greatest factor.
    """

    def __init__(self, frame: Sequence[int], scale: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.frame, self.scale = frame, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.query_size(flat_inputs)
        factor = torch.empty(()).uniform_(*self.scale).item()
        factor *= min(most / side for most, side in zip(self.frame, size, strict=True))
        return {"size": [max(1, round(side * factor)) for side in size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, Mask):
            mode = v2.InterpolationMode.NEAREST_EXACT
            return Mask(F.resize_image(inpt[None], params["size"], interpolation=mode)[0])
        return F.resize(inpt, params["size"], antialias=True)


class PadTo(v2.Transform):
    """Pad to a size at the right and at the bottom.

    Args:
        size: Height and width, no less than those of what comes.
        fill: A colour or a class for each kind of tensor.
    """

    def __init__(self, size: Sequence[int], fill: dict[Any, Any]) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, self.size[1] - width, self.size[0] - height]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.pad(inpt, params["padding"], fill=self.fill.get(type(inpt), 0))


def training_transform(
    config: dict[str, Any], recipe: DenseRecipe, target: Callable[[Any], Tensor]
) -> v2.Compose:
    """(PIL image, target) to a normalised (C, H, W) and a target tensor, as training takes them.

    Args:
        config: Preprocessing: ``input_size``, ``mean`` and ``std``.
        recipe: Of the data set, after the flags.
        target: What makes a tensor of what is known of an image.
    """
    fill = _fill(config["mean"])
    crop = v2.RandomCrop(recipe.size, pad_if_needed=True, fill={**fill, "others": 0})
    steps: list[Any] = [Fit(recipe.full or recipe.size, recipe.scale), crop]
    if recipe.hflip:
        steps.append(v2.RandomHorizontalFlip(recipe.hflip))
    if any(recipe.jitter):
        steps.append(v2.ColorJitter(*recipe.jitter))
    return v2.Compose([v2.ToImage(), *steps, *_finish(config, target)])


def evaluation_transform(
    config: dict[str, Any], full: Sequence[int], target: Callable[[Any], Tensor]
) -> v2.Compose:
    """As :func:`training_transform`, of the whole image at the top left of ``full``."""
    steps = [Fit(full), PadTo(full, _fill(config["mean"]))]
    return v2.Compose([v2.ToImage(), *steps, *_finish(config, target)])


def mask_target(mask: Mask) -> Tensor:
    """The class of every pixel, ``(H, W)`` int64."""
    return mask.as_subclass(Tensor).long()


class BoxTarget:
    """Boxes and labels as rows x1, y1, x2, y2, class, filled up with class -1: ``(most, 5)``.

    Boxes of less than a pixel, as a crop may leave them, are left out; of more than ``most``, the
    largest are taken.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, target: dict[str, Tensor]) -> Tensor:
        boxes = target["boxes"].as_subclass(Tensor)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (sides >= 1).all(1).nonzero()[:, 0]
        if len(kept) > self.most:
            kept = kept[sides[kept].prod(1).topk(self.most).indices.sort().values]
        rows = torch.zeros(self.most, 5)
        rows[:, 4] = NO_BOX
        rows[: len(kept), :4], rows[: len(kept), 4] = boxes[kept], target["labels"][kept].float()
        return rows


class _Tensors:
    """(tv_tensor, target) to two plain tensors."""

    def __init__(self, target: Callable[[Any], Tensor]) -> None:
        self.target = target

    def __call__(self, image: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        return image.as_subclass(Tensor), self.target(target)


def _finish(config: dict[str, Any], target: Callable[[Any], Tensor]) -> list[Any]:
    return [
        v2.ToDtype({Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(config["mean"], config["std"]),
        _Tensors(target),
    ]


def _fill(mean: Sequence[float]) -> dict[Any, Any]:
    """What padding shows: the mean colour, and a class that does not count."""
    return {Image: [round(255 * value) for value in mean], Mask: IGNORED}
