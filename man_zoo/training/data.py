"""From `--dataset NAME --data-dir DIR` to a training and an evaluation loader.

Small images are decoded once and augmented on the device (`MemoryLoader`); everything else is
streamed through timm's readers and transforms (`StreamLoader`). Both yield (images, targets),
normalised and on the device, give the same batches whenever the same `set_epoch` is asked for,
and take their own share of the data in a distributed run, so neither goes to `accelerator.prepare`.

    python -m man_zoo.training.data --dataset digits     # describe the data, measure the loader
"""

from __future__ import annotations

import math
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.data.loader import adapt_to_chs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision import datasets as tv_datasets
from torchvision import transforms as tv

from man_zoo.messages import unknown
from man_zoo.training.memory_loader import (
    MemoryLoader,
    check_enough,
    decode,
    epoch_generator,
    evaluation_batches,
    throughput,
    training_batches,
)

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images, both splits together
SMALL_SIDE = 96  # pixels; larger images are worth a random resized crop from the file
PIL_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class DatasetInfo:
    """How a data set is usually trained: sizes in pixels, mean and std for pixels in [0, 1].

    `padding` None means that no pad-and-crop recipe applies: images are cropped by timm's
    random resized crop.
    """

    label: str
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    padding: int | None = None
    padding_mode: str = "reflect"
    hflip: float = 0.5
    class_names: tuple[str, ...] = ()


_CIFAR: dict[str, Any] = {
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
    "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "size": 32,
    "padding": 4,
}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_DIGIT_NAMES = tuple("0123456789")

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        "scikit-learn digits (8x8 scans)", 10, **_HALF, size=16, padding=2, hflip=0.0,
        class_names=_DIGIT_NAMES,
    ),
    "cifar10": DatasetInfo("CIFAR-10", 10, **_CIFAR),
    "cifar100": DatasetInfo("CIFAR-100", 100, **_CIFAR),
    "svhn": DatasetInfo(
        "SVHN", 10, **_HALF, size=32, padding=2, hflip=0.0, class_names=_DIGIT_NAMES
    ),
    "stl10": DatasetInfo("STL-10", 10, **_HALF, size=96, padding=4),
    "fashion_mnist": DatasetInfo("Fashion-MNIST", 10, **_HALF, size=28, padding=2),
}  # fmt: skip
FOLDER_NAMES = ("folder", "imagefolder", "tar")
TIMM_PREFIXES = ("hfds/", "hfids/", "tfds/", "wds/", "torch/")
TORCH_NAMES = ("mnist", "kmnist", "qmnist", "imagenet", "places365", "inaturalist")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("val", "valid", "validation", "eval", "evaluation", "test", "testing"),
}


@dataclass(frozen=True)
class LoaderInfo:
    """What the loaders yield: `name` says honestly which data, `input_size` is (C, H, W).

    `interpolation`, `crop_pct` and `crop_mode` are those of evaluation, in timm's words.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    in_memory: bool
    train_count: int
    val_count: int


def add_data_args(parser: ArgumentParser) -> None:
    """Add every data flag, in one titled group, under the names of timm's train.py."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    names = ", ".join([*DATASETS, "folder", *(p + "NAME" for p in TIMM_PREFIXES)])
    add("--dataset", default="digits", metavar="NAME", help=f"one of {names} (default: digits)")
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="where the data set is, or is downloaded to; for a folder, the parent of train/ and "
        "test/ or of train.tar and test.tar (default: data)",
    )
    add("--download", action="store_true", help="download the data set if it is not in DIR")
    add("--data-label", metavar="TEXT", help="what tables and cards call the data set")
    add("--train-split", metavar="NAME", help="default: train")
    add("--val-split", metavar="NAME", help="default: validation, or a folder's val or test")
    add("--train-subset", type=int, metavar="N", help="train on N images, always the same ones")
    add("--train-num-samples", type=int, metavar="N", help="images, where a stream cannot tell")
    add("--val-num-samples", type=int, metavar="N", help="images, where a stream cannot tell")
    add("--class-map", metavar="FILE", help="class name to index, as timm reads it")
    add("--input-key", metavar="KEY", help="image column of an hfds, hfids, tfds or wds data set")
    add("--target-key", metavar="KEY", help="label column of an hfds, hfids, tfds or wds data set")
    add("--num-classes", type=int, metavar="N", help="default: the data set's own")
    add("--img-size", type=int, metavar="PX", help="default: the data set's own, else the model's")
    add("--input-size", type=int, nargs=3, metavar="N", help="channels height width")
    add("--in-chans", type=int, choices=PIL_MODES, help="1 keeps or makes images grey (default 3)")
    add("--mean", type=float, nargs="+", metavar="X", help="default: the data set's own")
    add("--std", type=float, nargs="+", metavar="X", help="default: the data set's own")
    add("--interpolation", metavar="NAME", help="resizing for evaluation and for decoding")
    add("--crop-pct", type=float, metavar="X", help="centre crop of streamed evaluation images")
    add(
        "-b",
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="training images a step and process (default: 64)",
    )
    add("-vb", "--validation-batch-size", type=int, metavar="N", help="default: --batch-size")
    add(
        "--in-memory",
        choices=("auto", "on", "off"),
        default="auto",
        help="decode once and augment on the device: pad, crop and flip only "
        f"(default: auto, for images of {SMALL_SIDE} px or less)",
    )
    add("-j", "--workers", type=int, default=4, metavar="N", help="processes a loader (default 4)")

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--no-aug", action="store_true", help="train on plain images")
    add(
        "--crop-padding",
        type=int,
        metavar="PX",
        help="padding before the random crop (default: the data set's own, else size / 8)",
    )
    add("--padding-mode", choices=("reflect", "constant"), help="default: the data set's own")
    add("--hflip", type=float, metavar="P", help="default: the data set's own, else 0.5")
    add("--vflip", type=float, metavar="P", help="streamed only (default: 0)")
    add(
        "--scale",
        type=float,
        nargs=2,
        metavar="X",
        help="area of the random resized crop, streamed only (default: 0.08 1)",
    )
    add(
        "--ratio",
        type=float,
        nargs=2,
        metavar="X",
        help="shape of the random resized crop, streamed only (default: 3/4 4/3)",
    )
    add(
        "--color-jitter",
        type=float,
        metavar="X",
        help="streamed only (default: timm's 0.4 with the random resized crop, else none)",
    )
    add("--aa", metavar="POLICY", help="timm AutoAugment policy, streamed only")
    add("--reprob", type=float, metavar="P", help="random erasing, streamed only (default: 0)")
    add("--remode", default="pixel", metavar="MODE", help="random erasing fill (default: pixel)")
    add("--recount", type=int, default=1, metavar="N", help="random erasing areas (default: 1)")
    add(
        "--train-interpolation",
        default="random",
        metavar="NAME",
        help="of the random resized crop (default: random)",
    )


# ---------------------------------------------------------------------------------------- sources


class Split(NamedTuple):
    train: Any
    val: Any


def open_dataset(args: Namespace, mode: str) -> tuple[Split, DatasetInfo, tuple[str, ...]]:
    """The two splits as data sets of (PIL image, int), how to train on them, and class names.

    Args:
        args: from `add_data_args`.
        mode: PIL mode of the images that timm's readers give, "L" or "RGB".

    Raises:
        ValueError: the name is unknown, or timm cannot open it, or the splits' classes differ.
        FileNotFoundError: the directory, the data in it or one of the splits is missing.
    """
    bare = args.dataset.removeprefix("torch/")
    name = bare if bare in DATASETS else args.dataset
    if name == "digits":
        return _digits(), DATASETS[name], DATASETS[name].class_names
    if name in DATASETS:
        info = DATASETS[name]
        splits = Split(
            *(_open_torchvision(args, name, info.label, train) for train in (True, False))
        )
        return splits, info, info.class_names or _class_names(splits.train)
    if name in FOLDER_NAMES:
        splits = _open_folder(args, mode)
        label = f"images in {Path(args.data_dir).resolve().name}"
        return splits, DatasetInfo(label), _class_names(splits.train)
    if name.lower().startswith(TIMM_PREFIXES):
        splits = Split(_open_timm(args, mode, True), _open_timm(args, mode, False))
        return splits, DatasetInfo(name), _class_names(splits.train)
    raise unknown(
        "--dataset", name,
        [*DATASETS, *FOLDER_NAMES, *TIMM_PREFIXES, *(f"torch/{bare}" for bare in TORCH_NAMES)],
    )  # fmt: skip


def open_splits(args: Namespace, mode: str) -> tuple[Split, DatasetInfo, tuple[str, ...]]:
    """As `open_dataset`, with only the training images that `--train-subset` leaves.

    Raises:
        ValueError, FileNotFoundError: as `open_dataset`, or the subset cannot be drawn.
    """
    splits, spec, names = open_dataset(args, mode)
    if args.train_subset is not None:
        splits = splits._replace(train=_subset(splits.train, args.train_subset))
    return splits, spec, names


def _digits() -> Split:
    """scikit-learn's 1,797 scanned digits, 80 % for training, in a split that never changes."""
    scans = load_digits()
    images = [Image.fromarray(scan) for scan in (scans.images * (255 / 16)).astype(np.uint8)]
    pairs = list(zip(images, scans.target.tolist(), strict=True))
    train, val = train_test_split(pairs, test_size=0.2, stratify=scans.target, random_state=0)
    return Split(train, val)


def _open_torchvision(args: Namespace, name: str, label: str, train: bool) -> Any:
    split = "train" if train else "test"
    try:
        if name in ("svhn", "stl10"):  # not among timm's names
            factory = {"svhn": tv_datasets.SVHN, "stl10": tv_datasets.STL10}[name]
            return factory(args.data_dir, split=split, download=args.download)
        return create_dataset(
            f"torch/{name}", root=args.data_dir, split=split, download=args.download
        )
    except (RuntimeError, OSError) as error:
        if args.download:
            raise FileNotFoundError(
                f"{label} could not be downloaded to {args.data_dir}: {_first_line(error)}"
            ) from error
        raise FileNotFoundError(
            f"{label} was not found in {args.data_dir}; pass --download, or point --data-dir at "
            "the directory that holds it."
        ) from error


def _open_folder(args: Namespace, mode: str) -> Split:
    train = _open_timm(args, mode, True, _find_split(args.data_dir, args.train_split, "train"))
    where = _find_split(args.data_dir, args.val_split, "test")
    val = _open_timm(args, mode, False, where)
    extra = sorted(_class_index(val).keys() - _class_index(train).keys())
    if extra:
        near = get_close_matches(extra[0], _class_index(train), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{where} has the class {extra[0]!r}, which the training split has not; expected the "
            f"classes of the training split, of which the nearest is {near!r}."
        )
    # A split without some of the classes would otherwise number the rest differently.
    index = _class_index(train)
    if _class_index(val) != index:
        val = _open_timm(args, mode, False, where, class_map=index)
    return Split(train, val)


def _find_split(data_dir: str, given: str | None, kind: str) -> Path:
    """The folder or tar file of a split, looked for under timm's synonyms and "test"."""
    root = Path(data_dir)
    if not root.is_dir():
        present = [path.name for path in root.parent.glob("*") if path.is_dir()]
        raise FileNotFoundError(
            f"--data-dir {data_dir} is not a directory; expected one with train/ and test/ (or "
            f"train.tar and test.tar) in it.{_nearest(root.name, present)}"
        )
    names = (given,) if given else SPLIT_NAMES[kind]
    for name in names:
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    present = sorted(p.name for p in root.iterdir())
    raise FileNotFoundError(
        f"{data_dir} has no {given or kind} split; expected a folder or .tar file called "
        f"{' or '.join(names)}.{_nearest(names[-1] if kind == 'test' else names[0], present)}"
    )


def _nearest(name: str, present: list[str]) -> str:
    near = get_close_matches(name, present, n=1, cutoff=0.0)
    return f" The nearest name there is {near[0]!r}." if near else ""


def _open_timm(
    args: Namespace, mode: str, train: bool, root: Path | None = None, class_map: Any = None
) -> Any:
    """One split through timm's `create_dataset`; `root` is given for folders and tar files."""
    split = (args.train_split or "train") if train else (args.val_split or "validation")
    keys = {} if root else {"input_key": args.input_key, "target_key": args.target_key}
    try:
        return create_dataset(
            "" if root else args.dataset,
            root=str(root) if root else args.data_dir,
            split=split,
            search_split=False,
            class_map=class_map or args.class_map,
            is_training=train,
            download=args.download,
            batch_size=args.batch_size,
            num_samples=args.train_num_samples if train else args.val_num_samples,
            seed=args.seed,
            input_img_mode=mode,
            **keys,
        )
    except Exception as error:  # every reader raises kinds of its own
        what = str(root) if root else f"{args.dataset} (split {split}, in {args.data_dir})"
        listed = [f"torch/{name}" for name in TORCH_NAMES]
        near = _nearest(args.dataset, listed) if args.dataset.startswith("torch/") else ""
        raise ValueError(f"{what} could not be opened: {_first_line(error)}.{near}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _class_index(dataset: Any) -> dict:
    """Class name to index, empty where the data set does not say; timm's tars name it otherwise."""
    reader = getattr(dataset, "reader", dataset)
    index = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    return dict(index or {})


def _class_names(dataset: Any) -> tuple[str, ...]:
    if hasattr(dataset, "classes"):
        return tuple(map(str, dataset.classes))
    index = _class_index(dataset)
    return tuple(str(name) for name in sorted(index, key=index.__getitem__))


# ---------------------------------------------------------------------------------------- loaders


class TransformedImages(Dataset):
    """(transform(image in `mode`), target) of a data set of PIL images, or of a plain list."""

    def __init__(self, source: Any, mode: str, transform: Any):
        self.source, self.mode, self.transform = source, mode, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.source[index]
        return self.transform(image.convert(self.mode)), int(target)


class _SeededImages(Dataset):
    """`images[index]` under random state `seed`, for keys (index, seed)."""

    def __init__(self, images: TransformedImages):
        self.images = images

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        with _random_state(seed):
            return self.images[index]


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed the three generators timm's transforms use, and restore them: with no workers they are
    the training loop's own."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerator too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class StreamLoader:
    """Batches read, decoded and transformed in worker processes, and moved to the device.

    Yields (images, targets): images (B, C, H, W) of `dtype` as `transform` makes them; targets
    (B,) int64. A map-style data set follows the order, shares and dropping of `MemoryLoader`, and
    each image has a random state of its own drawn from the seed and the epoch, so the batches do
    not depend on the number of workers, and not on that of processes but for how they are shared.
    An iterable data set shards itself, as timm's readers do, and its batches are reproducible for
    one number of workers and processes.

    Args:
        dataset: of (PIL image, int), or an `IterableImageDataset`, whose `transform` is then set.
        batch_size: images a step on this process.
        transform: PIL image to normalised float tensor (C, H, W).
        mode: PIL mode to convert to, "L" or "RGB"; an iterable data set converts by itself.
        train: shuffle and drop the last partial global batch.

    Raises:
        ValueError: the training set is smaller than one global batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        transform: Any,
        *,
        mode: str = "RGB",
        train: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ):
        self.iterable = isinstance(dataset, IterableDataset)
        if self.iterable:
            dataset.transform = transform
            dataset.set_loader_cfg(num_workers=workers)
            self.dataset: Any = dataset
        else:
            self.dataset = _SeededImages(TransformedImages(dataset, mode, transform))
        self.count = len(dataset)
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self.device, self.dtype = torch.device(device), dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.epoch = 0
        if train and not self.iterable:
            check_enough(self.count, batch_size, world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next pass will use."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.iterable:  # an estimate: the count is this rank's, as timm's readers reckon it
            batches = self.count / self.batch_size
            return math.floor(batches) if self.train else math.ceil(batches)
        if self.train:
            return self.count // (self.batch_size * self.world_size)
        return len(evaluation_batches(self.count, self.batch_size, self.rank, self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = epoch_generator(self.seed, self.epoch)
        if self.iterable:
            self.dataset.set_epoch(self.epoch)
            batching: dict[str, Any] = {"batch_size": self.batch_size, "drop_last": self.train}
        else:
            batching = {"batch_sampler": self._batches(generator)}
        # A new loader each epoch: its workers then start from this epoch's state. Given the
        # generator, it draws nothing from the training loop's own.
        loader = DataLoader(
            self.dataset,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=generator,
            **batching,
        )
        for images, targets in loader:
            images = images.to(
                self.device, self.dtype, non_blocking=True, memory_format=self.memory_format
            )
            yield images, targets.to(self.device, non_blocking=True)

    def _batches(self, generator: torch.Generator) -> list[list[tuple[int, int]]]:
        """The batches as lists of (index, seed of the image's random state)."""
        shard = (self.rank, self.world_size)
        if self.train:
            batches = training_batches(self.count, self.batch_size, generator, *shard)
        else:
            batches = evaluation_batches(self.count, self.batch_size, *shard)
        seeds = torch.randint(2**31, (self.count,), generator=generator)
        return [list(zip(b.tolist(), seeds[b].tolist(), strict=True)) for b in batches]


def create_loaders(
    args: Namespace,
    state: Accelerator | PartialState,
    data_config: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> tuple[MemoryLoader | StreamLoader, MemoryLoader | StreamLoader, LoaderInfo]:
    """The training loader, the evaluation loader, and what they yield.

    Size, mean, std and interpolation are, in this order, the flags', the data set's published
    ones, a small-image folder's own size, `data_config`'s, and timm's ImageNet defaults.

    Args:
        args: from `add_data_args`, and `args.seed`.
        state: the device and this process's place among the others.
        data_config: the model's, as `timm.data.resolve_model_data_config` gives it.
        dtype: of the images.
        channels_last: memory format of the images.

    Raises:
        ValueError: a flag cannot be honoured, or the data cannot be used as asked.
        FileNotFoundError: the data or one of its splits is missing.
    """
    data_config = data_config or {}
    channels = (args.input_size or [args.in_chans])[0] or data_config.get("input_size", [3])[0]
    if channels not in PIL_MODES:
        raise ValueError(f"Images of {channels} channels were asked for; expected 1 (grey) or 3.")
    with _main_process_first(state):  # one process downloads, the others find the files
        splits, spec, names = open_splits(args, PIL_MODES[channels])

    size = (spec.size, spec.size) if spec.size else _first_size(splits.train)
    small = size is not None and max(size) <= SMALL_SIDE
    config = _resolve_config(args, spec, data_config, channels, size if small else None)
    recipe = _augmentation(args, spec, config["input_size"], small)
    num_classes = _num_classes(args, spec, names)
    in_memory = _use_memory(args, splits, small, config["input_size"])
    build = _memory_loaders if in_memory else _stream_loaders
    train, val = build(
        args,
        splits,
        config,
        recipe,
        seed=args.seed,
        rank=state.process_index,
        world_size=state.num_processes,
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
        train_count=len(splits.train),
        val_count=len(splits.val),
    )
    return train, val, info


def _subset(dataset: Any, count: int) -> Subset:
    """``count`` images drawn once and for all: no seed of a run changes them."""
    if isinstance(dataset, IterableDataset):
        raise ValueError("--train-subset cannot choose from a stream; expected a data set on disk.")
    if not 0 < count <= len(dataset):
        raise ValueError(
            f"--train-subset {count} of {len(dataset)} training images; expected 1 to "
            f"{len(dataset)}."
        )
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return Subset(dataset, drawn.sort().values.tolist())


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


def _first_size(dataset: Any) -> tuple[int, int] | None:
    """Height and width in pixels of a data set's first image, None for a stream."""
    if isinstance(dataset, IterableDataset):
        return None
    # Read in a worker: a tar file opened here would be shared, with its position, by the loaders'.
    image, _ = next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
    return image.height, image.width


class Augmentation(NamedTuple):
    """`padding` in pixels, None for the random resized crop; `hflip` a probability."""

    padding: int | None
    padding_mode: str
    hflip: float


def _augmentation(
    args: Namespace, spec: DatasetInfo, input_size: tuple, small: bool
) -> Augmentation:
    padding = spec.padding if args.crop_padding is None else args.crop_padding
    if padding is None and (small or args.in_memory == "on"):
        padding = min(input_size[1:]) // 8  # 4 at 32 px, as published for CIFAR
    hflip = spec.hflip if args.hflip is None else args.hflip
    return Augmentation(padding, args.padding_mode or spec.padding_mode, hflip)


def _memory_loaders(
    args: Namespace,
    splits: Split,
    config: dict[str, Any],
    recipe: Augmentation,
    **common: Any,
) -> tuple[MemoryLoader, MemoryLoader]:
    channels, *size = config["input_size"]
    transform = tv.Compose(
        [tv.Resize(size, _tv_interpolation(config["interpolation"])), tv.PILToTensor()]
    )

    progress = PartialState().is_local_main_process

    def tensors(source: Any, label: str) -> tuple[Tensor, Tensor]:
        images = TransformedImages(source, PIL_MODES[channels], transform)
        # Starting workers takes longer than decoding a few thousand small images.
        return decode(images, args.workers if len(images) > 10_000 else 0, progress, label)

    common |= {"mean": config["mean"], "std": config["std"]}
    augment: dict[str, Any] = {} if args.no_aug else recipe._asdict()
    images, targets = tensors(splits.train, "training images")
    train = MemoryLoader(
        images,
        targets,
        args.batch_size,
        train=True,
        **augment,
        **common,
    )
    images, targets = tensors(splits.val, "evaluation images")
    val = MemoryLoader(
        images,
        targets,
        args.validation_batch_size or args.batch_size,
        **common,
    )
    return train, val


def _stream_loaders(
    args: Namespace,
    splits: Split,
    config: dict[str, Any],
    recipe: Augmentation,
    **common: Any,
) -> tuple[StreamLoader, StreamLoader]:
    common |= {"mode": PIL_MODES[config["input_size"][0]], "workers": args.workers}
    train = StreamLoader(
        splits.train,
        args.batch_size,
        _train_transform(args, config, recipe),
        train=True,
        **common,
    )
    val = StreamLoader(
        splits.val,
        args.validation_batch_size or args.batch_size,
        evaluation_transform(config),
        **common,
    )
    return train, val


def _resolve_config(
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


def _tv_interpolation(name: str) -> tv.InterpolationMode:
    try:
        return tv.InterpolationMode(name)
    except ValueError:
        raise unknown(
            "--interpolation", name, [mode.value for mode in tv.InterpolationMode]
        ) from None


def _use_memory(args: Namespace, splits: Split, small: bool, input_size: tuple) -> bool:
    """Whether to decode once, by `--in-memory` and by what the flags need."""
    streamed = ("scale", "ratio", "vflip", "color_jitter", "aa", "reprob")
    wanted = next((flag for flag in streamed if getattr(args, flag)), None)
    iterable = isinstance(splits.train, IterableDataset)
    if args.in_memory == "on" and wanted:
        raise ValueError(
            f"--{wanted.replace('_', '-')} needs streamed images, but --in-memory on was given; "
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


def _train_transform(args: Namespace, config: dict[str, Any], recipe: Augmentation) -> Any:
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
        resize = tv.Resize(size, _tv_interpolation(config["interpolation"]))
        crop = tv.RandomCrop(size, padding=recipe.padding, padding_mode=recipe.padding_mode)
        transform.transforms[0] = tv.Compose([resize, crop])
    return transform


def evaluation_transform(config: dict[str, Any]) -> Any:
    """PIL image to normalised tensor (C, H, W), by the preprocessing keys of `LoaderInfo`."""
    keys = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    return create_transform(config["input_size"], **{key: config[key] for key in keys})


def _num_classes(args: Namespace, spec: DatasetInfo, names: tuple[str, ...]) -> int:
    own = spec.num_classes or len(names)
    if not (args.num_classes or own):
        raise ValueError(
            f"The number of classes of {args.dataset} is not known; expected --num-classes N."
        )
    if args.num_classes and args.num_classes < own:
        raise ValueError(
            f"--num-classes {args.num_classes} is fewer than the {own} classes of {spec.label}; "
            f"expected {own} or more."
        )
    return args.num_classes or own


def main() -> None:
    """Describe the data that the flags name and measure both loaders."""
    parser = ArgumentParser(description="Describe a data set and measure its loaders.")
    add_data_args(parser)
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    train, val, info = create_loaders(parser.parse_args(), PartialState())
    print(info)
    print(f"train: {throughput(train):,.0f} images/s")
    print(f"val: {throughput(val):,.0f} images/s")


if __name__ == "__main__":
    main()
