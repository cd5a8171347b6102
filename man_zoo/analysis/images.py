"""The images that networks are looked at with: drawn at random, never augmented."""

from argparse import Namespace
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

from ..data import (
    PIL_MODES,
    LoaderInfo,
    Split,
    StreamLoader,
    choose_images,
    evaluation_loader,
    open_dataset,
)


def draw_images(
    args: Namespace,
    data: LoaderInfo,
    train: int,
    val: int,
    *,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Split:
    """Loaders of images that a run was trained on, and of test images; none is augmented.

    The order is random too: folders are sorted by class, and a batch of one class would tell
    nothing of what features have in common.

    Args:
        args: Data flags of a run.
        data: What that run found.
        train: How many training images to draw; all if there are fewer.
        val: The same for test images.
        batch_size: Images a batch.
        seed: Of the draw.
        device: Where batches go.

    Raises:
        ValueError: For a stream, from which nothing can be drawn, or data that cannot be opened.
        FileNotFoundError: If the data are not there.
    """
    splits, _, _ = open_dataset(args, PIL_MODES[data.input_size[0]])
    generator = torch.Generator().manual_seed(seed)

    def load(dataset: Any, count: int) -> StreamLoader:
        drawn = _draw(dataset, count, generator)
        return evaluation_loader(
            drawn,
            data,
            batch_size,
            workers=args.workers,
            device=device,
            skip_bad=args.skip_bad_images,
        )

    # The test images, whatever the run was validated on.
    return Split(load(choose_images(args, splits).train, train), load(splits.val, val))


def _draw(dataset: Any, count: int, generator: torch.Generator) -> Subset:
    if isinstance(dataset, IterableDataset):
        raise ValueError("Images cannot be drawn from a stream; expected a data set on disk.")
    return Subset(dataset, torch.randperm(len(dataset), generator=generator)[:count].tolist())
