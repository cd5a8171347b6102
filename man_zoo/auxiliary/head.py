"""What every base method's head has in common."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from .site import Site


class Head(nn.Module):
    """Local loss and, for most methods, logits from a block's features.

    A method defines ``classify``, which ends in ``site.exit()`` where the task has such, for then
    logits are a dense prediction; one whose loss is more than the task loss on those logits
    defines ``forward`` as well. Settings are keyword-only arguments of ``__init__``: they become
    keywords of ``timm.create_model`` and ``man_zoo.localize``.

    Args:
        site: Where the head stands.
    """

    needs_image: ClassVar[bool] = False
    """Whether the loss looks at the un-normalised image."""

    any_size: ClassVar[bool] = True
    """Whether it takes images of other sizes than the one it is built for."""

    classifies: bool = True
    """Whether the head gives class logits."""

    compares: bool = False
    """Whether the loss compares the images of a batch with each other."""

    criterion: Callable[[Tensor, Tensor], Tensor]
    """The task's loss."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        # Hidden from nn.Module: the block owns it, and a checkpoint holds its weights once.
        object.__setattr__(self, "criterion", site.criterion)

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``(B, classes)``; only called where the head ``classifies``.

        Args:
            features: In the backbone's own layout.
        """
        raise NotImplementedError

    def forward(
        self, features: Tensor, target: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Local loss (a scalar) and logits ``(B, classes)``.

        Args:
            features: In the backbone's own layout.
            target: Class indices ``(B,)`` or probabilities ``(B, classes)``.
            image: ``(B, C, H, W)`` un-normalised, values 0 to 1; ``None`` unless ``needs_image``.
        """
        logits = self.classify(features)
        return self.criterion(logits, target), logits
