"""What is done to an image before a network sees it, in training and in evaluation."""

from argparse import Namespace
from typing import Any, NamedTuple

from timm.data import create_transform, resolve_data_config
from timm.data.loader import adapt_to_chs
from torchvision import transforms as tv

from ..console.numbers import height_width
from ..messages import unknown
from .info import DatasetInfo

PIL_MODES = {1: "L", 3: "RGB"}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Augmentation(NamedTuple):
    """Pad, crop and flip: ``padding`` in pixels, ``None`` for the random resized crop instead."""

    padding: int | None
    padding_mode: str
    hflip: float


def choose_augmentation(
    args: Namespace, spec: DatasetInfo, input_size: tuple, small: bool
) -> Augmentation:
    """The flags' augmentation, else the data set's published one, else one that fits the size.

    Raises:
        ValueError: If images are too small to be padded so.
    """
    hflip = spec.hflip if args.hflip is None else args.hflip
    mode = args.padding_mode or spec.padding_mode
    if args.scale or args.ratio or args.no_aug:
        return Augmentation(None, mode, hflip)
    padding = spec.padding if args.crop_padding is None else args.crop_padding
    if padding is None and (small or args.in_memory == "on"):
        padding = min(input_size[1:]) // 8  # 4 at 32 px, as published for CIFAR
    if padding and mode == "reflect" and padding >= min(input_size[1:]):
        most = min(input_size[1:]) - 1
        raise ValueError(
            f"--crop-padding {padding} cannot be reflected in images of {input_size[1]} x "
            f"{input_size[2]} pixels; expected {f'{most} or less' if most else 0}, or "
            "--padding-mode constant."
        )
    return Augmentation(padding, mode, hflip)


def resolve_config(
    args: Namespace,
    spec: DatasetInfo,
    data_config: dict[str, Any],
    channels: int,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """timm's data config, with the data set's published values before the model's.

    Raises:
        ValueError: If ``--mean``, ``--std`` or an interpolation is none.
    """
    for flag in ("mean", "std"):
        given = getattr(args, flag)
        if given and len(given) not in (1, channels):
            raise ValueError(
                f"--{flag} has {len(given)} values; expected 1{', or 3' if channels == 3 else ''}."
            )
    own: dict[str, Any] = {
        key: value for key, value in [("mean", spec.mean), ("std", spec.std)] if value is not None
    }
    if size:
        own["input_size"] = (channels, *size)
        own |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    flags = {**vars(args), "in_chans": channels}
    if args.img_size and not args.input_size:
        flags |= {"img_size": None, "input_size": (channels, *height_width(args.img_size))}
    config = resolve_data_config(flags, pretrained_cfg={**data_config, **own})
    config["input_size"] = (channels, *config["input_size"][1:])
    interpolation_mode(config["interpolation"])
    if args.train_interpolation != "random":
        interpolation_mode(args.train_interpolation, "--train-interpolation")
    for key in ("mean", "std"):
        config[key] = tuple(adapt_to_chs(config[key], channels))
    return config


def interpolation_mode(name: str, flag: str = "--interpolation") -> tv.InterpolationMode:
    """torchvision's mode of this name.

    Raises:
        ValueError: If it or timm knows none.
    """
    if name not in INTERPOLATIONS:
        raise unknown(flag, name, INTERPOLATIONS)
    return tv.InterpolationMode(name)


def training_transform(args: Namespace, config: dict[str, Any], recipe: Augmentation) -> Any:
    """timm's training transform, its crop replaced by pad-and-crop where that is the recipe.

    Raises:
        ValueError: If a range runs downwards, or timm does not know the policy.
    """
    _check_range("--scale", args.scale)
    _check_range("--ratio", args.ratio)
    size = config["input_size"][1:]
    pad_and_crop = recipe.padding is not None
    jitter = args.color_jitter
    if jitter is None:
        jitter = 0.0 if pad_and_crop else 0.4
    try:
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
    except (AssertionError, ValueError) as error:
        if not args.aa:
            raise
        raise ValueError(
            f"--aa {args.aa!r} is no policy of timm's; expected one such as rand-m9-mstd0.5, "
            "augmix-m3-w3, original or 3a."
        ) from error
    if pad_and_crop:
        resize = tv.Resize(size, interpolation_mode(config["interpolation"]))
        crop = tv.RandomCrop(size, padding=recipe.padding, padding_mode=recipe.padding_mode)
        transform.transforms[0] = tv.Compose([resize, crop])
    return transform


def _check_range(flag: str, given: list[float] | None) -> None:
    if given and given[0] > given[1]:
        raise ValueError(
            f"{flag} {given[0]} {given[1]} is no range; expected the smaller number first."
        )


def evaluation_transform(config: dict[str, Any]) -> Any:
    """PIL image to normalised tensor (C, H, W).

    Args:
        config: Preprocessing keys of :class:`~man_zoo.data.LoaderInfo`.
    """
    keys = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    return create_transform(config["input_size"], **{key: config[key] for key in keys})
