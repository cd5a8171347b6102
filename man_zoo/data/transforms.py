"""What is done to an image before a network sees it, in training and in evaluation."""

from argparse import Namespace
from typing import Any, NamedTuple

from timm.data import create_transform, resolve_data_config
from timm.data.loader import adapt_to_chs
from torchvision import transforms as tv

from ..messages import unknown
from .info import DatasetInfo

PIL_MODES = {1: "L", 3: "RGB"}


class Augmentation(NamedTuple):
    """Pad, crop and flip: ``padding`` in pixels, ``None`` for the random resized crop instead."""

    padding: int | None
    padding_mode: str
    hflip: float


def choose_augmentation(
    args: Namespace, spec: DatasetInfo, input_size: tuple, small: bool
) -> Augmentation:
    """The flags' augmentation, else the data set's published one, else one that fits the size."""
    padding = spec.padding if args.crop_padding is None else args.crop_padding
    if padding is None and (small or args.in_memory == "on"):
        padding = min(input_size[1:]) // 8  # 4 at 32 px, as published for CIFAR
    hflip = spec.hflip if args.hflip is None else args.hflip
    return Augmentation(padding, args.padding_mode or spec.padding_mode, hflip)


def resolve_config(
    args: Namespace,
    spec: DatasetInfo,
    data_config: dict[str, Any],
    channels: int,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """timm's data config, with the data set's published values before the model's."""
    own: dict[str, Any] = {
        key: value for key, value in [("mean", spec.mean), ("std", spec.std)] if value is not None
    }
    if size:
        own["input_size"] = (channels, *size)
        own |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    flags = {**vars(args), "in_chans": channels}
    config = resolve_data_config(flags, pretrained_cfg={**data_config, **own})
    config["input_size"] = (channels, *config["input_size"][1:])
    for key in ("mean", "std"):
        config[key] = tuple(adapt_to_chs(config[key], channels))
    return config


def interpolation_mode(name: str) -> tv.InterpolationMode:
    """torchvision's mode of this name.

    Raises:
        ValueError: If it knows none.
    """
    try:
        return tv.InterpolationMode(name)
    except ValueError:
        raise unknown(
            "--interpolation", name, [mode.value for mode in tv.InterpolationMode]
        ) from None


def training_transform(args: Namespace, config: dict[str, Any], recipe: Augmentation) -> Any:
    """timm's training transform, its crop replaced by pad-and-crop where that is the recipe."""
    size = config["input_size"][1:]
    pad_and_crop = recipe.padding is not None and not (args.scale or args.ratio or args.no_aug)
    jitter = args.color_jitter
    if jitter is None:
        jitter = 0.0 if pad_and_crop else 0.4
    transform = create_transform(
        config["input_size"],
        is_training=True,
        no_aug=args.no_aug,
        scale=args.scale,
        ratio=args.ratio,
        hflip=recipe.hflip,
        vflip=args.vflip or 0.0,
        color_jitter=jitter,
        auto_augment=args.aa,
        re_prob=args.reprob or 0.0,
        re_mode=args.remode,
        re_count=args.recount,
        interpolation=args.train_interpolation,
        mean=config["mean"],
        std=config["std"],
    )
    if pad_and_crop:
        resize = tv.Resize(size, interpolation_mode(config["interpolation"]))
        crop = tv.RandomCrop(size, padding=recipe.padding, padding_mode=recipe.padding_mode)
        transform.transforms[0] = tv.Compose([resize, crop])
    return transform


def evaluation_transform(config: dict[str, Any]) -> Any:
    """PIL image to normalised tensor (C, H, W).

    Args:
        config: Preprocessing keys of :class:`~man_zoo.data.LoaderInfo`.
    """
    keys = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    return create_transform(config["input_size"], **{key: config[key] for key in keys})
