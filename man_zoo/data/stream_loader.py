"""Batches read, decoded and augmented image by image in worker processes."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .images import StreamedImages, TransformedImages, read
from .readers import Readers
from .sampling import check_enough, epoch_generator, evaluation_batches, training_batches
from .skipping import Skipping, collate


class _SeededImages(Dataset):
    """``images[index]`` under random state ``seed``, for keys (index, seed)."""

    def __init__(self, images: Dataset):
        self.images = images

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any]:
        index, seed = key
        with _random_state(seed):
            return self.images[index]


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed the three generators that timm's transforms use, then restore them.

    With no workers they are the training loop's own.
    """
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

    Yields (images, targets): images (B, C, H, W) of ``dtype`` as ``transform`` makes them; targets
    (B,) int64, or what ``samples`` makes, stacked. A map-style data set follows the order, shares
    and dropping of :class:`~man_zoo.data.MemoryLoader`, and each image has a random state of its
    own drawn from the seed and the epoch, so the batches do not depend on the number of workers,
    and not on that of processes but for how they are shared.
    An image that cannot be used ends the pass, or with ``skip_bad`` is told of in ``bad_images``:
    the place of one in training goes to the next image of the batch, evaluation does without.
    An iterable data set shards itself, as timm's readers do, and its batches are reproducible for
    one number of workers and processes.

    Args:
        dataset: Of (PIL image, int), or timm's ``IterableImageDataset`` of the same; or of what
            ``samples`` takes.
        batch_size: Images a step on this process.
        transform: PIL image to normalised float tensor (C, H, W).
        mode: PIL mode to convert to, ``"L"`` or ``"RGB"``.
        train: Shuffle and drop the last partial global batch.
        seed: Of order and augmentation, together with the epoch.
        rank: This process's place among the others.
        world_size: Number of processes.
        workers: Processes that read and transform.
        device: Where batches go.
        dtype: Of the images.
        channels_last: Memory format of the images.
        skip_bad: Go on without images that cannot be used; not for an iterable data set.
        samples: From ``dataset``, ``mode`` and ``transform`` to a data set of two tensors.

    Raises:
        ValueError: If the training set is smaller than one global batch.
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
        skip_bad: bool = False,
        samples: Callable[[Any, str, Any], Dataset] = TransformedImages,
    ):
        self.iterable = isinstance(dataset, IterableDataset)
        if self.iterable:
            dataset.set_loader_cfg(num_workers=workers)
            self.dataset: Any = StreamedImages(dataset, mode, transform)
        else:
            self.dataset = _SeededImages(samples(dataset, mode, transform))
        if skip_bad:
            self.dataset = Skipping(self.dataset, fill=train)
        self.skip_bad = skip_bad
        self.bad_images: list[str] = []  # a sentence on each that the last pass has left out
        self.count = len(dataset)
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self.device, self.dtype = torch.device(device), dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.set_epoch(0)
        if train and not self.iterable:
            check_enough(self.count, batch_size, world_size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch whose order and augmentation the next pass will use.

        Args:
            epoch: Counted from 0.
            start: The batch with which the pass begins. Those before it have been seen, and are not
                read again, but for those of an iterable data set.
        """
        self.epoch, self.start = epoch, start

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
            self.dataset.source.set_epoch(self.epoch)
            batching: dict[str, Any] = {"batch_size": self.batch_size, "drop_last": self.train}
        else:
            batching = {"batch_sampler": self._batches(generator)[self.start :]}
        # A new loader each epoch: its workers then start from this epoch's state. Given the
        # generator, it draws nothing from the training loop's own.
        loader = Readers(
            self.dataset,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=generator,
            collate_fn=collate if self.skip_bad else None,
            **batching,
        )
        batches = self._without_bad(loader) if self.skip_bad else self._all(loader)
        seen = self.start if self.iterable else 0
        for images, targets in islice(batches, seen, None):
            images = images.to(
                self.device, self.dtype, non_blocking=True, memory_format=self.memory_format
            )
            yield images, targets.to(self.device, non_blocking=True)

    def _all(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        return read(loader, can_skip=not self.iterable)

    def _without_bad(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        self.bad_images = []
        for batch, bad in read(loader):
            self.bad_images += bad
            if batch is not None:
                yield batch

    def _batches(self, generator: torch.Generator) -> list[list[tuple[int, int]]]:
        """The batches as lists of (index, seed of the image's random state)."""
        shard = (self.rank, self.world_size)
        if self.train:
            batches = training_batches(self.count, self.batch_size, generator, *shard)
        else:
            batches = evaluation_batches(self.count, self.batch_size, *shard)
        seeds = torch.randint(2**31, (self.count,), generator=generator)
        return [list(zip(b.tolist(), seeds[b].tolist(), strict=True)) for b in batches]
