"""The training and the evaluation loader that the flags ask for, and what they yield."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchvision import transforms as tv

from ..messages import flag_of
from .classes import count_classes
from .dense import DenseSamples, dense_transforms
from .images import TransformedImages, UnreadableImage, read
from .info import DatasetInfo, DenseRecipe, LoaderInfo
from .memory_loader import MemoryLoader, decode
from .sources import Split, open_dataset, open_splits
from .stream_loader import StreamLoader
from .transforms import (
    PIL_MODES,
    Augmentation,
    choose_augmentation,
    evaluation_transform,
    interpolation_mode,
    resolve_config,
    training_transform,
)

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images, both splits together
SMALL_SIDE = 96  # pixels; larger images are worth a random resized crop from the file
LOOKED_AT = 8  # images of a set, spread over it: one small one makes no set of small ones


def create_loaders(
    args: Namespace,
    state: Accelerator | PartialState,
    data_config: dict[str, Any] | None = None,
    *,
    shard: tuple[int, int] | None = None,
    reads: bool = True,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> tuple[MemoryLoader | StreamLoader, MemoryLoader | StreamLoader, LoaderInfo]:
    """The training loader, the evaluation loader, and what they yield.

    Size, mean, std and interpolation are, in this order, the flags', the data set's published
    ones, a small-image folder's own size, ``data_config``'s, and timm's ImageNet defaults.

    Args:
        args: From :func:`man_zoo.data.add_data_args`, and ``args.seed``.
        state: The device and this process's place among the others.
        shard: Which share of the data this process reads, and of how many; by that place if left
            out.
        reads: Whether this process reads images; nothing is decoded ahead if not.
        data_config: The model's, as ``timm.data.resolve_data_config`` gives it.
        dtype: Of the images.
        channels_last: Memory format of the images.

    Raises:
        ValueError: If a flag cannot be honoured, or the data cannot be used as asked.
        FileNotFoundError: If the data or one of its splits is missing.
    """
    data_config = data_config or {}
    channels = (args.input_size or [args.in_chans])[0] or data_config.get("input_size", [3])[0]
    if channels not in PIL_MODES:
        raise ValueError(f"Images of {channels} channels were asked for; expected 1 (grey) or 3.")
    with _main_process_first(state):  # one process downloads, the others find the files
        splits, spec, names = open_splits(args, PIL_MODES[channels])

    if args.skip_bad_images and isinstance(splits.train, IterableDataset):
        raise ValueError(
            f"--skip-bad-images cannot leave images out of the stream {args.dataset}; expected a "
            "data set on disk, or the run without it."
        )
    num_classes = count_classes(args, spec, names)
    if spec.dense:
        config, in_memory, build = _prepare_dense(args, spec, spec.dense, data_config, channels)
    else:
        config, in_memory, build = _prepare(args, splits, spec, data_config, channels, reads)
    rank, world_size = shard or (state.process_index, state.num_processes)
    train, val = build(
        args,
        splits,
        config,
        seed=args.seed,
        rank=rank,
        world_size=world_size,
        device=state.device,
        dtype=dtype,
        channels_last=channels_last,
    )
    info = LoaderInfo(
        name=f"{args.data_label or spec.label} at {'x'.join(map(str, config['input_size'][1:]))}",
        num_classes=num_classes,
        class_names=names,
        mean=config["mean"],
        std=config["std"],
        input_size=config["input_size"],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        in_memory=in_memory,
        train_count=train.count,
        val_count=val.count,
        task=args.task,
        full_size=(spec.dense.full or spec.dense.size) if spec.dense else None,
        boxes=spec.dense.boxes if spec.dense and args.task == "detection" else None,
    )
    return train, val, info


def create_test_loader(
    args: Namespace,
    state: Accelerator | PartialState,
    info: LoaderInfo,
    *,
    shard: tuple[int, int] | None = None,
    channels_last: bool = True,
) -> StreamLoader:
    """The test split of a run that validates on held-out images (``--val-holdout``).

    Args:
        args: As for :func:`create_loaders`.
        state: As there.
        info: What that found.
        shard: As there.
        channels_last: Memory format of the images.
    """
    splits, _, _ = open_dataset(args, PIL_MODES[info.input_size[0]])
    rank, world_size = shard or (state.process_index, state.num_processes)
    return evaluation_loader(
        splits.val,
        info,
        args.validation_batch_size or args.batch_size,
        workers=args.workers,
        rank=rank,
        world_size=world_size,
        device=state.device,
        channels_last=channels_last,
        skip_bad=args.skip_bad_images,
    )


def evaluation_loader(
    dataset: Any, info: LoaderInfo, batch_size: int, **settings: Any
) -> StreamLoader:
    """Any images of a data set, preprocessed as it is evaluated.

    Args:
        dataset: Of (PIL image, target).
        info: What the loaders of the data set found.
        batch_size: Images a batch.
        settings: Of :class:`StreamLoader`.
    """
    config = asdict(info)
    mode = PIL_MODES[info.input_size[0]]
    if info.full_size:
        recipe = DenseRecipe(info.input_size[1:], info.full_size, boxes=info.boxes or 0)
        _, transform = dense_transforms(info.task, config, recipe)
        return StreamLoader(
            dataset, batch_size, transform, mode=mode, samples=DenseSamples, **settings
        )
    return StreamLoader(dataset, batch_size, evaluation_transform(config), mode=mode, **settings)


Build = Callable[..., tuple[MemoryLoader | StreamLoader, MemoryLoader | StreamLoader]]


def _prepare(
    args: Namespace,
    splits: Split,
    spec: DatasetInfo,
    data_config: dict[str, Any],
    channels: int,
    reads: bool,
) -> tuple[dict[str, Any], bool, Build]:
    """Preprocessing, whether images are decoded once, and what builds the loaders."""
    size = (spec.size,) * 2 if spec.size else _largest_size(splits.train, args.skip_bad_images)
    small = size is not None and max(size) <= SMALL_SIDE
    config = resolve_config(args, spec, data_config, channels, size if small else None)
    recipe = choose_augmentation(args, spec, config["input_size"], small)
    in_memory = _use_memory(args, splits, small, config["input_size"])
    if in_memory:
        config |= {"crop_pct": 1.0, "crop_mode": "squash"}  # they are resized whole
    if in_memory and reads:
        return config, True, partial(_memory_loaders, recipe=recipe)
    transforms = Split(training_transform(args, config, recipe), evaluation_transform(config))
    return config, in_memory, partial(_stream_loaders, transforms=transforms)


def _prepare_dense(
    args: Namespace,
    spec: DatasetInfo,
    recipe: DenseRecipe,
    data_config: dict[str, Any],
    channels: int,
) -> tuple[dict[str, Any], bool, Build]:
    """As :func:`_prepare`, of images whose pixels or objects have classes."""
    config = resolve_config(args, spec, data_config, channels, recipe.size)
    transforms = Split(*dense_transforms(args.task, config, recipe))
    return config, False, partial(_stream_loaders, transforms=transforms, samples=DenseSamples)


@contextmanager
def _main_process_first(state: Accelerator | PartialState) -> Iterator[None]:
    """As Accelerate's, but should the main process fail, the others go on, to fail alike."""
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_main_process:
            state.wait_for_everyone()


def _largest_size(dataset: Any, skip_bad: bool) -> tuple[int, int] | None:
    """Height and width in pixels of the largest of some images, None for a stream.

    One that is not small is enough to know.
    """
    if isinstance(dataset, IterableDataset):
        return None
    last = len(dataset) - 1
    some = dict.fromkeys(i * last // (LOOKED_AT - 1) for i in range(LOOKED_AT))
    sizes: list[tuple[int, int]] = []
    error = None
    for place, index in enumerate(chain(some, range(len(dataset)) if skip_bad else ())):
        if sizes and place >= len(some):
            break
        # In a worker: a tar file opened here would be shared, with its position, by the loaders'.
        one = DataLoader(Subset(dataset, [index]), batch_size=None, num_workers=1)
        try:
            image, _ = next(read(one, can_skip=not skip_bad))
        except UnreadableImage as unreadable:
            error = error or unreadable
        else:
            sizes.append((image.height, image.width))
            if max(sizes[-1]) > SMALL_SIDE:
                break
    if not sizes:
        assert error is not None  # there is an image at least
        raise error
    return max(sizes, key=max)


def _memory_loaders(
    args: Namespace,
    splits: Split,
    config: dict[str, Any],
    *,
    recipe: Augmentation,
    **common: Any,
) -> tuple[MemoryLoader, MemoryLoader]:
    channels, *size = config["input_size"]
    transform = tv.Compose(
        [tv.Resize(size, interpolation_mode(config["interpolation"])), tv.PILToTensor()]
    )

    progress = PartialState().is_local_main_process

    def tensors(source: Any, label: str) -> tuple[Tensor, Tensor, list[str]]:
        images = TransformedImages(source, PIL_MODES[channels], transform)
        # Starting workers takes longer than decoding a few thousand small images.
        workers = args.workers if len(images) > 10_000 else 0
        return decode(images, workers, progress, label, args.skip_bad_images)

    common |= {"mean": config["mean"], "std": config["std"]}
    augment: dict[str, Any] = {} if args.no_aug else recipe._asdict()
    images, targets, bad = tensors(splits.train, "training images")
    train = MemoryLoader(
        images,
        targets,
        args.batch_size,
        train=True,
        bad_images=bad,
        **augment,
        **common,
    )
    images, targets, bad = tensors(splits.val, "evaluation images")
    val = MemoryLoader(
        images,
        targets,
        args.validation_batch_size or args.batch_size,
        bad_images=bad,
        **common,
    )
    return train, val


def _stream_loaders(
    args: Namespace,
    splits: Split,
    config: dict[str, Any],
    *,
    transforms: Split,
    **common: Any,
) -> tuple[StreamLoader, StreamLoader]:
    common |= {"mode": PIL_MODES[config["input_size"][0]], "workers": args.workers}
    common["skip_bad"] = args.skip_bad_images
    train = StreamLoader(
        splits.train,
        args.batch_size,
        transforms.train,
        train=True,
        **common,
    )
    val = StreamLoader(
        splits.val,
        args.validation_batch_size or args.batch_size,
        transforms.val,
        **common,
    )
    return train, val


def _use_memory(args: Namespace, splits: Split, small: bool, input_size: tuple) -> bool:
    """Whether to decode once, by ``--in-memory`` and by what the flags need."""
    streamed = ("scale", "ratio", "vflip", "color_jitter", "aa", "reprob")
    wanted = next((flag for flag in streamed if getattr(args, flag)), None)
    iterable = isinstance(splits.train, IterableDataset)
    if args.in_memory == "on" and wanted:
        raise ValueError(
            f"{flag_of(wanted)} needs streamed images, but --in-memory on was given; "
            "expected --in-memory auto or off with it."
        )
    if args.in_memory == "on" and iterable:
        raise ValueError(
            f"--in-memory on cannot hold the stream {args.dataset}; expected auto or off."
        )
    if args.in_memory != "auto":
        return args.in_memory == "on"
    if wanted or not small:
        return False
    return (len(splits.train) + len(splits.val)) * math.prod(input_size) <= MEMORY_LIMIT
