"""Where an auxiliary stands: all that a base method may know when it builds its head."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..families import Units
from ..layout import Layout


@dataclass(frozen=True)
class Site:
    """The place of auxiliary ``index`` of ``count`` (both counted from block 1 = index 0).

    Args:
        index: Which auxiliary, from 0.
        count: How many there are, K - 1.
        channels: Channels of the features that the head receives.
        size: Height and width of those features; the token grid for transformers.
        layout: How the features lie.
        image_size: Height and width of the image.
        num_classes: Classes of the task.
        units: The backbone's units, for methods that build like the network itself.
        position: Index of the last unit before the head, in ``units``.
        widths: Channels after every unit of the backbone.
        norm: ``"batch"``, or ``"group"`` for a norm that does not look across the batch.
        criterion: The classification loss, ``(logits, target) -> scalar``.
    """

    index: int
    count: int
    channels: int
    size: tuple[int, int]
    layout: Layout
    image_size: tuple[int, int]
    image_channels: int
    num_classes: int
    units: Units
    position: int
    widths: tuple[int, ...]
    norm: str
    criterion: Callable[[Tensor, Tensor], Tensor]

    def norm2d(self, channels: int) -> nn.Module:
        """The norm after a convolution of ``channels`` outputs."""
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(1, channels)

    def norm1d(self, features: int) -> nn.Module:
        """The norm after a linear layer of ``features`` outputs."""
        return nn.BatchNorm1d(features) if self.norm == "batch" else nn.GroupNorm(1, features)
