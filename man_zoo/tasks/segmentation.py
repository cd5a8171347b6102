"""Semantic segmentation: a target is the class of every pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..messages import unknown
from .decoder import Decoder, Exit
from .iou import IGNORED, boundary_counts, boundary_iou, confusion, iou
from .pictures import Draw, draw_masks
from .segmentation_decoders import DECODERS
from .tally import Sums, added
from .task import ExitSite


@dataclass(frozen=True)
class Segmentation:
    """Semantic segmentation: target ``(B, H, W)``, prediction ``(B, classes, h, w)``.

    Args:
        num_classes: How many classes there are.
        kind: Of the decoder: ``"deeplabv3"`` or ``"fpn"``.

    Raises:
        ValueError: For another kind, or no class.
    """

    num_classes: int
    kind: str = "deeplabv3"

    name: ClassVar[str] = "segmentation"
    main_score: ClassVar[str] = "miou"
    percent: ClassVar[Mapping[str, str]] = {"miou": "mean IoU", "pixels": "pixels right"}
    usual_classes: ClassVar[int] = 19  # Cityscapes
    dense: ClassVar[bool] = True
    decoders: ClassVar[tuple[str, ...]] = tuple(DECODERS)
    draw: ClassVar[Draw | None] = staticmethod(draw_masks)

    def __post_init__(self) -> None:
        if self.kind not in DECODERS:
            raise unknown("decoder of segmentation", self.kind, DECODERS)
        if not 1 <= self.num_classes <= IGNORED:
            raise ValueError(
                f"num_classes={self.num_classes} is impossible for segmentation; expected 1 to "
                f"{IGNORED}, because a pixel of class {IGNORED} counts nowhere."
            )

    @property
    def least_images(self) -> int:
        """Two where a batch norm follows a pooling of the whole map, as in DeepLabV3."""
        return 2 if self.kind == "deeplabv3" else 1

    def with_classes(self, num_classes: int) -> Self:
        """The same task with so many classes."""
        return replace(self, num_classes=num_classes)

    # The network ----------------------------------------------------------------------------------

    def decoder(self, maps: Sequence[torch.Size], input_size: tuple[int, int, int]) -> Decoder:
        """torchvision's DeepLabV3 head on the last map, or its feature pyramid on several."""
        return DECODERS[self.kind](maps, self.num_classes)

    def exit(self, site: ExitSite) -> Exit:
        """InfoPro's dense head (Wang et al., ICLR 2021): a fully convolutional one."""
        width = site.channels // 2
        return Exit(
            nn.Sequential(
                nn.Conv2d(site.channels, width, 3, padding=1, bias=False),
                site.norm2d(width),
                nn.ReLU(True),
                nn.Dropout2d(0.1),
                nn.Conv2d(width, self.num_classes, 1),
            )
        )

    def to_image(self, prediction: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits ``(B, classes, height, width)``, resized as torchvision's DeepLabV3 does it."""
        return resize(prediction, size)

    # Training -------------------------------------------------------------------------------------

    def criterion(self, smoothing: float = 0.0) -> nn.Module:
        """:class:`PixelLoss`."""
        return PixelLoss(smoothing)

    def random_target(
        self, count: int, size: tuple[int, int], device: torch.device | None = None
    ) -> Tensor:
        """Classes ``(count, height, width)``."""
        return torch.randint(self.num_classes, (count, *size), device=device)

    # Scores ---------------------------------------------------------------------------------------

    def tally(self) -> Sums:
        """Of :meth:`sums`."""
        return Sums(self.sums, torch.zeros(self.num_classes + 3, self.num_classes).double())

    def sums(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Counts of a batch, one below the other, a column a class: ``(classes + 3, classes)``.

        The confusion matrix (rows: truth), pixels in both boundaries and in either, and the loss
        summed over images, everywhere in the last row.
        """
        logits = resize(prediction.float(), (target.shape[1], target.shape[2]))
        predicted, classes = logits.argmax(1), self.num_classes
        loss = PixelLoss()(logits, target).double() * len(target)
        return torch.cat(
            [
                confusion(predicted, target, classes),
                boundary_counts(predicted, target, classes),
                loss.expand(1, classes),
            ]
        )

    def scores(self, tallies: Sequence[Any]) -> dict[str, Any]:
        """In percent ``miou``, ``pixels`` that are right, ``iou`` and ``boundary_iou`` of classes.

        A class of which there is neither truth nor prediction has no IoU (``nan``) and no share in
        the mean.
        """
        sums, count = added(tallies)
        pixels, boundaries = sums[: self.num_classes], sums[self.num_classes : -1]
        of_classes = 100 * iou(pixels)
        return {
            "miou": of_classes.nanmean().item(),
            "pixels": (100 * pixels.diagonal().sum() / pixels.sum()).item(),
            "iou": of_classes.tolist(),
            "boundary_iou": (100 * boundary_iou(boundaries)).tolist(),
            "loss": (sums[-1, 0] / count).item(),
        }

    def drawable(self, prediction: Tensor) -> Tensor:
        """Classes ``(B, H, W)``."""
        return prediction.argmax(1)


class PixelLoss(nn.Module):
    """Cross-entropy of every pixel of the target, the mean over all of them.

    Pixels that do not count have a loss of 0 and are among those of the mean, as in mmsegmentation,
    where InfoPro's results come from: every image weighs the same, a batch may be taken in slices,
    and one without a label is no division by zero.

    Args:
        smoothing: Of labels.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """A scalar, from logits ``(B, classes, h, w)`` of any size and target ``(B, H, W)``."""
        logits = resize(prediction, (target.shape[1], target.shape[2]))
        total = F.cross_entropy(
            logits,
            target,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.smoothing,
        )
        return total / target.numel()


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners not aligned; the logits themselves where they are of that size."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
