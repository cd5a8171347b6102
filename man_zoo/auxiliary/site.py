"""Where an auxiliary stands: all that a base method may know when it builds its head."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..families import Units
from ..layout import Layout
from ..tasks import Exit, Task


@dataclass(frozen=True)
class Site:
    """The place of auxiliary ``index`` of ``count`` (both counted from block 1 = index 0).

    Args:
        index: Which auxiliary, from 0.
        count: How many there are, K - 1.
        channels: Channels of the features that the head receives.
        size: Height and width of those features; the token grid for transformers.
        next_size: Height and width of what the next block's first unit gives.
        layout: How the features lie.
        image_size: Height and width of the image.
        task: What is learnt.
        units: The backbone's units, for methods that build like the network itself.
        position: Index of the last unit before the head, in ``units``.
        widths: Channels after every unit of the backbone.
        norm: ``"batch"``, or ``"group"`` for a norm that does not look across the batch.
        criterion: The task's loss, ``(prediction, target) -> scalar``.
    """

    index: int
    count: int
    channels: int
    size: tuple[int, int]
    next_size: tuple[int, int]
    layout: Layout
    image_size: tuple[int, int]
    image_channels: int
    task: Task
    units: Units
    position: int
    widths: tuple[int, ...]
    norm: str
    criterion: Callable[[Tensor, Tensor], Tensor]

    @property
    def num_classes(self) -> int:
        """Classes of the task."""
        return self.task.num_classes

    def exit(self, **received: Any) -> Exit | None:
        """A dense task's small decoder; ``None`` where the method's own classifier stands.

        Args:
            received: ``channels`` and ``size`` of the map that it receives, where they are not the
                site's.
        """
        return self.task.exit(replace(self, **received))

    def need_image_labels(self, what: str) -> None:
        """Raises ``ValueError`` if images have no label of their own, which ``what`` compares."""
        if self.task.dense:
            raise ValueError(
                f"{what} compares the labels of images, and {self.task.name} labels what is in "
                "them; use dgl, infopro or auglocal, with cross_entropy."
            )

    def norm2d(self, channels: int) -> nn.Module:
        """The norm after a convolution of ``channels`` outputs."""
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(1, channels)

    def norm1d(self, features: int) -> nn.Module:
        """The norm after a linear layer of ``features`` outputs."""
        return nn.BatchNorm1d(features) if self.norm == "batch" else nn.GroupNorm(1, features)
