"""The data sets that ``--dataset`` names: PIL images and targets, and how they are trained on."""

from argparse import Namespace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import IterableDataset, Subset
from torchvision import datasets as tv_datasets

from ..messages import unknown
from .classes import class_index, class_names
from .dense import open_dense, refuse_dense_flags
from .folders import check_folder, find_split, nearest
from .images import ImageFiles, read_image
from .info import DATASETS, DatasetInfo
from .unread import SAMPLES, refuse

FOLDER_NAMES = ("folder", "imagefolder", "tar")
TIMM_PREFIXES = ("hfds/", "hfids/", "tfds/", "wds/", "torch/")
STREAM_PREFIXES = ("hfids/", "tfds/", "wds/")
RAW_PREFIXES = ("hfids/", "wds/")  # whose readers can leave an image in the mode of its file
TORCH_NAMES = ("mnist", "kmnist", "qmnist", "imagenet", "places365", "inaturalist")

# Flags that some data sets read and others do not.
_SPLITS = ("train_split", "val_split", "class_map")
_COLUMNS = ("input_key", "target_key")


class Split(NamedTuple):
    """Something for each of the two splits: data sets, or loaders."""

    train: Any
    val: Any


def open_dataset(args: Namespace, mode: str) -> tuple[Split, DatasetInfo, tuple[str, ...]]:
    """The two splits as data sets of (PIL image, int), how to train on them, and class names.

    Of another task than classification they are as :func:`~man_zoo.data.dense.open_dense` says.

    Args:
        args: From :func:`man_zoo.data.add_data_args`.
        mode: PIL mode of the images that timm's readers give, ``"L"`` or ``"RGB"``.

    Raises:
        ValueError: If the name is unknown, timm cannot open it, or the splits' classes differ.
        FileNotFoundError: If the directory, the data in it or one of the splits is missing.
    """
    if args.task != "classification":
        dense, info, names = open_dense(args, _digits)
        return Split(*dense), info, names
    refuse_dense_flags(args)
    bare = args.dataset.removeprefix("torch/")
    name = bare if bare in DATASETS else args.dataset
    if not name.lower().startswith(STREAM_PREFIXES):
        refuse(args, SAMPLES, f"a stream or pasted scenes; of {name} --train-subset takes some")
    if name in DATASETS:
        label = DATASETS[name].label
        refuse(args, _SPLITS, f"folders and timm's readers; {label} has splits of its own")
    if name in (*DATASETS, *FOLDER_NAMES):
        refuse(args, _COLUMNS, f"data sets with columns; {name} has none")
    if name == "digits":
        return _digits(), DATASETS[name], DATASETS[name].class_names
    if name in DATASETS:
        info = DATASETS[name]
        splits = Split(
            *(_open_torchvision(args, name, info.label, train) for train in (True, False))
        )
        return splits, info, info.class_names or class_names(splits.train)
    if name in FOLDER_NAMES:
        splits = _open_folder(args, mode)
        label = f"images in {Path(args.data_dir).resolve().name}"
        return splits, DatasetInfo(label), class_names(splits.train)
    if name.lower().startswith(TIMM_PREFIXES):
        splits = Split(_open_timm(args, mode, True), _open_timm(args, mode, False))
        return splits, DatasetInfo(name), class_names(splits.train)
    raise unknown(
        "--dataset", name,
        [*DATASETS, *FOLDER_NAMES, *TIMM_PREFIXES, *(f"torch/{bare}" for bare in TORCH_NAMES)],
    )  # fmt: skip


def open_splits(args: Namespace, mode: str) -> tuple[Split, DatasetInfo, tuple[str, ...]]:
    """As :func:`open_dataset`, after ``--val-holdout`` and ``--train-subset``.

    Raises:
        ValueError: As there, or if held-out images or the subset cannot be drawn.
        FileNotFoundError: As there.
    """
    splits, spec, names = open_dataset(args, mode)
    return choose_images(args, splits), spec, names


def choose_images(args: Namespace, splits: Split) -> Split:
    """What ``--val-holdout`` and ``--train-subset`` leave of a data set's splits to train on.

    Raises:
        ValueError: If held-out images or the subset cannot be drawn.
    """
    if args.val_holdout is not None:
        held_out = _draw(splits.train, args.val_holdout, "--val-holdout", keep=1)
        rest = sorted(set(range(len(splits.train))) - set(held_out.indices))
        splits = Split(Subset(splits.train, rest), held_out)
    if args.train_subset is not None:
        subset = _draw(splits.train, args.train_subset, "--train-subset")
        splits = splits._replace(train=subset)
    return splits


def _digits() -> Split:
    """scikit-learn's 1,797 scanned digits, 80 % for training, in a split that never changes."""
    # Here, because it takes every command a second to import.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

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
    roots = Split(
        find_split(args.data_dir, args.train_split, "train"),
        find_split(args.data_dir, args.val_split, "test"),
    )
    for root in roots:
        if root.is_dir():
            check_folder(root)
    train, val = _open_timm(args, mode, True, roots.train), _open_timm(args, mode, False, roots.val)
    extra = sorted(class_index(val).keys() - class_index(train).keys())
    if extra:
        near = get_close_matches(extra[0], class_index(train), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{roots.val} has the class {extra[0]!r}, which the training split has not; expected "
            f"the classes of the training split, of which the nearest is {near!r}."
        )
    # A split without some of the classes would otherwise number the rest differently.
    index = class_index(train)
    if class_index(val) != index:
        val = _open_timm(args, mode, False, roots.val, class_map=index)
    return Split(train, val)


def _open_timm(
    args: Namespace, mode: str, train: bool, root: Path | None = None, class_map: Any = None
) -> Any:
    """One split through timm's ``create_dataset``; ``root`` is given for folders and tar files."""
    split = (args.train_split or "train") if train else (args.val_split or "validation")
    keys = {} if root else {"input_key": args.input_key, "target_key": args.target_key}
    try:
        dataset = create_dataset(
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
            input_img_mode="" if args.dataset.lower().startswith(RAW_PREFIXES) else mode,
            **keys,
        )
    except Exception as error:  # every reader raises kinds of its own
        what = str(root) if root else f"{args.dataset} (split {split}, in {args.data_dir})"
        listed = [f"torch/{name}" for name in TORCH_NAMES]
        near = nearest(args.dataset, listed) if args.dataset.startswith("torch/") else ""
        raise ValueError(f"{what} could not be opened: {_first_line(error)}.{near}") from error
    if isinstance(dataset, ImageDataset):
        return ImageFiles(dataset.reader, mode)
    if hasattr(dataset, "loader"):  # torchvision's folders of images
        dataset.loader = partial(read_image, mode=mode)
    return dataset


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _draw(dataset: Any, count: int, flag: str, keep: int = 0) -> Subset:
    """``count`` images drawn once and for all: no seed of a run changes them. Some are kept."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"{flag} cannot choose from a stream; expected a data set on disk.")
    most = len(dataset) - keep
    if not 0 < count <= most:
        raise ValueError(f"{flag} {count} of {len(dataset)} training images; expected 1 to {most}.")
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return Subset(dataset, drawn.sort().values.tolist())
