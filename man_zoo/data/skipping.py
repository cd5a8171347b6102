"""Images that cannot be used (``--skip-bad-images``): left out of their batch, and told of."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .images import UnreadableImage

Sample = tuple[Tensor, int]


class Skipping(Dataset):
    """Batches of images without those that cannot be used, for a ``DataLoader`` with ``collate``.

    A batch depends on nothing but its own keys, so not on the number of worker processes.

    Args:
        images: ``images[key]`` gives (tensor, int), or raises :class:`UnreadableImage`.
        fill: Give the place of an image that is left out to the next one of the batch, which then
            counts twice, so that the batch stays full.
    """

    def __init__(self, images: Any, fill: bool) -> None:
        self.images, self.fill = images, fill

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Any]) -> tuple[list[Sample], list[str]]:
        """The samples, and a sentence on each image that is left out.

        Raises:
            UnreadableImage: If a batch that is to be full has no image left.
        """
        read = [self._read(key) for key in keys]
        bad = [str(error) for error in read if isinstance(error, UnreadableImage)]
        good = [sample for sample in read if not isinstance(sample, UnreadableImage)]
        if not (self.fill and bad):
            return good, bad
        if not good:
            raise UnreadableImage(bad[0])
        following, samples = good[0], []  # the last place goes to the batch's first
        for sample in reversed(read):
            if not isinstance(sample, UnreadableImage):
                following = sample
            samples.append(following)
        return samples[::-1], bad

    def _read(self, key: Any) -> Sample | UnreadableImage:
        try:
            return self.images[key]
        except UnreadableImage as error:
            return error


def collate(batch: Any) -> tuple[list[Tensor] | None, list[str]]:
    """(images, targets) of a batch of :class:`Skipping`, ``None`` of none; and its sentences."""
    samples, bad = batch
    return default_collate(samples) if samples else None, bad
