"""Image classification: a target is the index of a class, or the classes' probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from .pictures import Draw
from .tally import Sums, added
from .task import ExitSite


@dataclass(frozen=True)
class Classification:
    """Image classification.

    Args:
        num_classes: How many classes there are.
    """

    num_classes: int

    name: ClassVar[str] = "classification"
    main_score: ClassVar[str] = "top1"
    percent: ClassVar[Mapping[str, str]] = {"top1": "top-1", "top5": "top-5"}
    usual_classes: ClassVar[int] = 1000  # ImageNet
    dense: ClassVar[bool] = False
    draw: ClassVar[Draw | None] = None

    @staticmethod
    def target(label: Any) -> int:
        """What a data set gives for an image, as a loader batches it: the index of its class.

        Raises:
            ValueError: If it gives nothing.
        """
        if label is None:
            raise ValueError("it has no label")
        return int(label)

    @property
    def least_images(self) -> int:
        """One."""
        return 1

    def with_classes(self, num_classes: int) -> Self:
        """The same task with so many classes."""
        return replace(self, num_classes=num_classes)

    def decoder(self, maps: Sequence[torch.Size], input_size: tuple[int, int, int]) -> None:
        """None: the backbone's own head stands on it."""

    def exit(self, site: ExitSite) -> None:
        """None: methods bring classifiers of their own."""

    def to_image(self, prediction: Tensor, size: tuple[int, int]) -> Tensor:
        """The logits ``(B, classes)`` as they are."""
        return prediction

    def random_target(
        self, count: int, size: tuple[int, int], device: torch.device | None = None
    ) -> Tensor:
        """Class indices ``(count,)``."""
        return torch.randint(self.num_classes, (count,), device=device)

    def criterion(self, smoothing: float = 0.0) -> nn.Module:
        """The loss of the head, and of auxiliaries that classify: ``(logits, target)`` to a scalar.

        Args:
            smoothing: Of labels.
        """
        return nn.CrossEntropyLoss(label_smoothing=smoothing)

    def mixup(self, **settings: Any) -> Mixup:
        """timm's mixup and cutmix on batches ``(images, target)``; settings are timm's.

        Without timm's label smoothing: the loss smooths mixed targets too.
        """
        return Mixup(label_smoothing=0.0, num_classes=self.num_classes, **settings)

    def tally(self) -> Sums:
        """Of :meth:`sums`."""
        return Sums(self.sums, torch.zeros(3, dtype=torch.float64))

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """What a batch adds to the scores: hits at first, hits among five, loss ``(3,)``, float64.

        Args:
            logits: ``(B, classes)``.
            target: ``(B,)``.
        """
        hits = self.ranked(logits) == target[:, None]
        loss = F.cross_entropy(logits.float(), target, reduction="sum")
        return torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double()])

    @staticmethod
    def ranked(logits: Tensor) -> Tensor:
        """The five best classes of each image ``(B, 5)``, or all; equal ones in one order.

        In low precision logits are often equal, and ``argmax`` takes another one of them.
        """
        return logits.float().topk(min(5, logits.shape[1])).indices

    def scores(self, tallies: Sequence[Any]) -> dict[str, float]:
        """``top1`` and ``top5`` in percent and the mean ``loss``."""
        sums, count = added(tallies)
        top1, top5, loss = (sums / count).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}

    def drawable(self, prediction: Tensor) -> Tensor:
        """Classes ``(B,)``, which nothing draws."""
        return self.ranked(prediction)[:, 0]
