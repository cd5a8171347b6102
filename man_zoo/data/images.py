"""From what a data set holds to what a network takes: one image at a time."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from .targets import as_target


class TransformedImages(Dataset):
    """(transform(image in ``mode``), target) of a data set of PIL images, or of a plain list."""

    def __init__(self, source: Any, mode: str, transform: Any):
        self.source, self.mode, self.transform = source, mode, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.source[index]
        return self.transform(image.convert(self.mode)), as_target(target)
