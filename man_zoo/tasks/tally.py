"""What is counted of a network over a data set, image by image and process by process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Tally(Protocol):
    """Of one network in one process; picklable, to meet those of the others."""

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: As the network gives it, or as :meth:`Task.to_image` does.
            target: Of the same images.
        """


@dataclass
class Sums:
    """A tally for scores that follow from sums over images, which add up exactly.

    Args:
        of_batch: From a prediction and a target to what they add, float64.
        total: What no images add: zeros.
        count: Of the images.
    """

    of_batch: Callable[[Tensor, Tensor], Tensor]
    total: Tensor
    count: int = 0

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self.total = self.total + self.of_batch(prediction, target).cpu()
        self.count += len(target)


def added(tallies: Sequence[Any]) -> tuple[Tensor, int]:
    """The total and the number of images of several :class:`Sums`."""
    total = sum(tally.total for tally in tallies)
    return total, sum(tally.count for tally in tallies)
