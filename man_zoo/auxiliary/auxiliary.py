"""An auxiliary: a momentum unit, a shared unit or nothing, then a base method's head."""

from torch import Tensor, nn

from ..recompute import run
from .head import Head
from .momentum import MomentumUnit
from .overlap import SharedUnit


class Auxiliary(nn.Module):
    """Local loss and early exit of one block: ``head(momentum(h))``.

    Args:
        head: A base method's head.
        momentum: MAN's momentum unit in front of it, or the next block's own unit, if any.
        recompute: Mode in which the head is recomputed in backward, if it is.
    """

    def __init__(
        self,
        head: Head,
        momentum: MomentumUnit | SharedUnit | None = None,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.momentum = nn.Identity() if momentum is None else momentum
        self.head = head
        self.recompute = recompute

    @property
    def needs_image(self) -> bool:
        """Whether the local loss looks at the un-normalised image."""
        return self.head.needs_image

    @property
    def any_size(self) -> bool:
        """Whether the head takes images of other sizes than the one it is built for."""
        return self.head.any_size

    @property
    def classifies(self) -> bool:
        """Whether the head gives class logits."""
        return self.head.classifies

    @property
    def compares(self) -> bool:
        """Whether the local loss compares the images of a batch with each other."""
        return self.head.compares

    def forward(
        self, features: Tensor, target: Tensor, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Local loss (a scalar) and the head's prediction, ``None`` where it has none."""
        return run(self.head, self.momentum(features), target, image, recompute=self.recompute)

    def classify(self, features: Tensor) -> Tensor:
        """The head's logits alone."""
        return self.head.classify(self.momentum(features))
