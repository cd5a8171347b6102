"""From the flags to the recipe of a dense task, and to samples of an image and its target."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ...console.numbers import height_width
from ..images import naming, to_mode
from ..info import DenseRecipe
from ..unread import refuse
from .transforms import BoxTarget, evaluation_transform, mask_target, training_transform

# What would part masks and boxes from what they are of, or is not read by these readers.
_NOT_DENSE = (
    *("scale", "ratio", "crop_padding", "padding_mode", "vflip", "aa", "reprob", "crop_pct"),
    *("interpolation", "class_map", "input_key", "target_key"),
)
_ONLY_DENSE = ("full_size", "scale_jitter")


class DenseSamples(Dataset):
    """``transform(image in mode, target)`` of a data set of (PIL image, target)."""

    def __init__(self, source: Any, mode: str, transform: Any) -> None:
        self.source, self.mode, self.transform = source, mode, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.source[index]
        with naming(lambda: f"Image {index}"):
            return self.transform(to_mode(image, self.mode), target)


def refuse_dense_flags(args: Namespace) -> None:
    """See that no flag is given that says how masks and boxes are trained on.

    Raises:
        ValueError: If there is one.
    """
    refuse(args, _ONLY_DENSE, "segmentation and detection; expected --task with one of them")


def adapt(recipe: DenseRecipe, args: Namespace) -> DenseRecipe:
    """The data set's recipe with what the flags say in its place.

    Raises:
        ValueError: For a flag that has no meaning for masks and boxes, and a range that runs
            downwards.
    """
    taken = "--img-size, --full-size, --scale-jitter, --hflip and --color-jitter"
    refuse(args, _NOT_DENSE, f"classification; --task {args.task} takes {taken}")
    if args.in_memory == "on":
        raise ValueError(
            f"--in-memory on cannot hold masks and boxes (--task {args.task}); expected auto or "
            "off."
        )
    given: dict[str, Any] = {}
    if args.input_size or args.img_size:
        sides = args.input_size[1:] if args.input_size else height_width(args.img_size)
        given["size"] = tuple(sides)
    if args.full_size:
        given["full"] = height_width(args.full_size)
    if args.scale_jitter:
        low, high = args.scale_jitter
        if low > high:
            raise ValueError(
                f"--scale-jitter {low} {high} is no range; expected the smaller number first."
            )
        given["scale"] = (low, high)
    if args.hflip is not None:
        given["hflip"] = args.hflip
    if args.color_jitter is not None:
        given["jitter"] = (*(args.color_jitter,) * 3, 0.0)
    if args.no_aug:
        given |= {"scale": (1.0, 1.0), "hflip": 0.0, "jitter": (0.0,) * 4}
    return replace(recipe, **given)


def dense_transforms(
    task: str, config: dict[str, Any], recipe: DenseRecipe
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of training and of evaluation: (PIL image, target) to (tensor, tensor).

    Args:
        task: ``"segmentation"`` or ``"detection"``.
        config: Preprocessing: ``mean`` and ``std``.
        recipe: After the flags.
    """
    target = mask_target if task == "segmentation" else BoxTarget(recipe.boxes)
    full = recipe.full or recipe.size
    return (
        training_transform(config, recipe, target),
        evaluation_transform(config, full, target),
    )
