"""The data sets that ``--dataset`` names where ``--task`` is segmentation or detection."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST

from ...messages import unknown
from ..info import DatasetInfo
from ..unread import SAMPLES, refuse
from .earth import open_earth
from .folders import open_ade20k, open_cityscapes, open_coco, open_voc
from .info import DENSE, OF_CLASSIFICATION
from .loaders import adapt
from .pasted import PastedScenes, as_boxes, as_mask

Pictures = list[tuple[Image.Image, int]]

_COUNTS = (2000, 400)  # scenes for training and for validation
_DIGITS, _FASHION = (1.5, 4.0), (0.75, 1.5)  # enlargement of 8 and of 28 pixels
_FOLDERS: dict[str, Callable[[Namespace], tuple[Any, Any]]] = {
    "cityscapes": open_cityscapes,
    "voc": open_voc,
    "ade20k": open_ade20k,
    "coco": open_coco,
}


def open_dense(
    args: Namespace, digits: Callable[[], Any]
) -> tuple[tuple[Any, Any], DatasetInfo, tuple[str, ...]]:
    """Both splits as data sets of (PIL image, target), how to train on them, and class names.

    A target is a ``tv_tensors.Mask``, or ``boxes`` and their ``labels``.

    Args:
        args: From :func:`man_zoo.data.add_data_args`.
        digits: Opens the digits, split for training and validation.

    Raises:
        ValueError: If the task has no such data set, or they cannot be used as asked.
        FileNotFoundError: If they are missing.
        UserError: If a package that reads them is missing.
    """
    known = DENSE[args.task]
    name = OF_CLASSIFICATION.get(args.dataset, args.dataset)
    if name not in known:
        raise unknown(f"--dataset of --task {args.task}", name, known)
    recipe = known[name].dense
    assert recipe is not None
    spec = replace(known[name], dense=adapt(recipe, args))
    splits = _open(args, name, spec, digits)
    return splits, spec, spec.class_names or splits[0].classes


def _open(
    args: Namespace, name: str, spec: DatasetInfo, digits: Callable[[], Any]
) -> tuple[Any, Any]:
    assert spec.dense is not None
    if name not in OF_CLASSIFICATION.values():
        refuse(args, SAMPLES, f"pasted scenes; of {name} --train-subset takes some")
    if name in _FOLDERS:
        return _FOLDERS[name](args)
    if name == "earth":
        return open_earth(spec.dense.size)
    if name == "pasted_digits":
        splits = [[(_ink(image), label) for image, label in split] for split in digits()]
        enlargement = _DIGITS
    else:
        splits, enlargement = [_fashion(args, train) for train in (True, False)], _FASHION
    asked = (args.train_num_samples, args.val_num_samples)
    train, val = (
        PastedScenes(
            pictures,
            enlargement,
            spec.dense.size,
            count or usual,
            seed,
            as_mask if args.task == "segmentation" else as_boxes,
        )
        for seed, (pictures, count, usual) in enumerate(zip(splits, asked, _COUNTS, strict=True))
    )
    return train, val


def _fashion(args: Namespace, train: bool) -> Pictures:
    """Fashion-MNIST's clothes, opaque within their outlines."""
    try:
        clothes = FashionMNIST(args.data_dir, train=train, download=args.download)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST was not found in {args.data_dir}; expected FashionMNIST/raw/ with its "
            "four files there, or --download."
        ) from error
    images = [_cloth(image) for image in clothes.data.numpy()]
    return list(zip(images, clothes.targets.tolist(), strict=True))


def _ink(scan: Image.Image) -> Image.Image:
    """White ink, as opaque as the scan is bright."""
    return Image.merge("LA", (Image.new("L", scan.size, 255), scan))


def _cloth(pixels: np.ndarray) -> Image.Image:
    # Here, because every command would import it.
    from scipy.ndimage import binary_fill_holes

    outline = binary_fill_holes(pixels > 32).astype(np.uint8) * 255
    return Image.merge("LA", (Image.fromarray(pixels), Image.fromarray(outline)))
