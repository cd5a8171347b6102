"""A whole data set as one uint8 tensor on the device, cropped, flipped and normalised there."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .images import UnreadableImage, read
from .sampling import check_enough, epoch_generator, evaluation_batches, training_batches
from .skipping import Skipping, collate


class MemoryLoader:
    """Batches of a decoded data set, augmented in bulk on the device that holds it.

    Yields (images, targets): images (B, C, H, W) of ``dtype``, normalised; targets (B,) int64.
    Training shuffles, crops at random from the padded image, flips, and drops the last partial
    global batch. What a pass yields depends only on the arguments and on the last ``set_epoch``:
    iterating twice gives the same batches, and ``world_size`` processes of batch size B see
    together the images of one process of batch size ``world_size * B``. Do not pass it to
    ``accelerator.prepare``.

    Args:
        images: Shape (N, C, H, W), uint8.
        targets: Shape (N,), int64.
        batch_size: Images a step on this process.
        mean: One value a channel, for pixels scaled to [0, 1].
        std: The same.
        train: Shuffle, augment and drop the last partial batch.
        padding: Pixels padded on each side before the crop (training only).
        padding_mode: ``"reflect"`` or ``"constant"`` (black).
        hflip: Probability of a horizontal flip (training only).
        seed: Of order and augmentation, together with the epoch.
        rank: This process's place among the others.
        world_size: Number of processes.
        device: Where the decoded set is held.
        dtype: Of the images.
        channels_last: Memory format of the images.
        bad_images: A sentence on each that was left out as the set was decoded.

    Raises:
        ValueError: If the training set is smaller than one global batch.
    """

    iterable = False  # its length is known

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        train: bool = False,
        padding: int = 0,
        padding_mode: str = "reflect",
        hflip: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        bad_images: Sequence[str] = (),
    ):
        self.count, self.channels, self.height, self.width = images.shape
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size = rank, world_size
        self.bad_images = bad_images
        self.device, self.dtype = torch.device(device), dtype
        self.padding, self.hflip = (padding, hflip) if train else (0, 0.0)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.set_epoch(0)
        if train:
            check_enough(self.count, batch_size, world_size)

        # One row a pixel: select, crop and flip are then a single index_select per batch, and the
        # result comes out channels_last.
        if self.padding:
            images = F.pad(images, [self.padding] * 4, mode=padding_mode)
        self.pixels = images.permute(0, 2, 3, 1).reshape(-1, self.channels).to(self.device)
        self.targets = targets.to(self.device)
        self.shift = 255 * torch.tensor(mean, device=self.device).view(-1, 1, 1)
        self.scale = 1 / (255 * torch.tensor(std, device=self.device)).view(-1, 1, 1)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch whose order and augmentation the next pass will use.

        Args:
            epoch: Counted from 0.
            start: The batch with which the pass begins; those before it have been seen.
        """
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        if self.train:
            return self.count // (self.batch_size * self.world_size)
        return len(evaluation_batches(self.count, self.batch_size, self.rank, self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        shard = (self.rank, self.world_size)
        if self.train:
            generator = epoch_generator(self.seed, self.epoch)
            batches = training_batches(self.count, self.batch_size, generator, *shard)
            # Drawn per image of the whole set, so that they do not depend on the batching.
            down, right = torch.randint(
                2 * self.padding + 1, (2, self.count), generator=generator
            ).to(self.device)
            flip = (torch.rand(self.count, generator=generator) < self.hflip).to(self.device)
        else:
            batches = evaluation_batches(self.count, self.batch_size, *shard)
            down = right = torch.zeros(self.count, dtype=torch.int64, device=self.device)
            flip = down.bool()

        for batch in batches[self.start :]:
            index = batch.to(self.device)
            images = self._crop(index, down[index], right[index], flip[index])
            yield self._normalise(images), self.targets[index]

    def _crop(self, index: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
        """Windows of the padded images, (B, C, H, W) uint8; every argument has shape (B,)."""
        rows = torch.arange(self.height, device=self.device) + down[:, None]
        columns = torch.arange(self.width, device=self.device)
        columns = torch.where(flip[:, None], columns.flip(0), columns) + right[:, None]
        padded_height, padded_width = self.height + 2 * self.padding, self.width + 2 * self.padding
        lines = (index[:, None] * padded_height + rows) * padded_width
        positions = lines[:, :, None] + columns[:, None, :]
        window = self.pixels.index_select(0, positions.flatten())
        return window.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def _normalise(self, images: Tensor) -> Tensor:
        images = images.float().sub_(self.shift).mul_(self.scale)
        return images.to(self.dtype).contiguous(memory_format=self.memory_format)


def decode(
    dataset: Dataset,
    workers: int = 0,
    progress: bool = True,
    label: str = "data",
    skip_bad: bool = False,
) -> tuple[Tensor, Tensor, list[str]]:
    """Read a data set once.

    A progress bar appears on standard error if it takes more than two seconds.

    Args:
        dataset: ``dataset[i]`` gives an uint8 tensor (C, H, W), of one shape for all, and an int.
        workers: Processes that read.
        progress: Show the bar.
        label: What the bar calls the data.
        skip_bad: Leave out images that cannot be used.

    Returns:
        Images (N, C, H, W), uint8, targets (N,), int64, and a sentence on each image that was left
        out.

    Raises:
        UnreadableImage: For an image that cannot be used, if it is not to be left out or all are
            so.
    """
    count = len(dataset)  # type: ignore[arg-type]
    images, targets, done = torch.empty(0), torch.empty(count, dtype=torch.int64), 0
    bad: list[str] = []
    loader = DataLoader(
        Skipping(dataset, fill=False) if skip_bad else dataset,
        batch_size=256,
        num_workers=workers,
        collate_fn=collate if skip_bad else None,
    )
    with tqdm(
        total=count, desc=f"Decoding {label}", unit="img", delay=2, disable=not progress
    ) as bar:
        for batch in read(loader, can_skip=not skip_bad):
            if skip_bad:
                batch, left_out = batch
                bad += left_out
                if batch is None:
                    continue
            some, labels = batch
            if done == 0:  # Filled in place: the decoded set is never held twice.
                images = torch.empty((count, *some.shape[1:]), dtype=torch.uint8)
            images[done : done + len(some)] = some
            targets[done : done + len(some)] = labels
            done += len(some)
            bar.update(len(some))
    if done == 0:
        raise UnreadableImage(bad[0])
    return images[:done], targets[:done], bad
