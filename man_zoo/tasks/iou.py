"""Intersection over union of predicted and true pixels, of whole classes and of their boundaries.

Everything is counted and nothing averaged before the end, so counts of batches, and of processes,
add up exactly.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # class of pixels that count nowhere, as Cityscapes, ADE20K and VOC have it
RATIO = 0.02  # of the image's diagonal: how wide a boundary is (Cheng et al. 2021)


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each true class (rows) are taken for which, ``(classes, classes)``.

    Args:
        predicted: Classes ``(B, H, W)``.
        target: Classes ``(B, H, W)``, 255 where a pixel does not count.
        num_classes: How many classes there are.

    Returns:
        float64, exact to 2**53 pixels.
    """
    counts = target != IGNORED
    pairs = target[counts] * num_classes + predicted[counts]
    return pairs.bincount(minlength=num_classes**2).double().view(num_classes, num_classes)


def boundary_counts(
    predicted: Tensor, target: Tensor, num_classes: int, ratio: float = RATIO
) -> Tensor:
    """Pixels in both boundaries and in either, of each class, ``(2, classes)`` float64.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562): only pixels of a mask that are within
    ``ratio`` of the image's diagonal from its outline count. As in the authors' code the edge of
    the image is an outline, and so is that of what does not count.

    Args:
        predicted: Classes ``(B, H, W)``.
        target: Classes ``(B, H, W)``, 255 where a pixel does not count.
        num_classes: How many classes there are.
        ratio: Width of a boundary.
    """
    width = max(1, round(ratio * math.hypot(*target.shape[1:])))
    predicted = predicted.where(target != IGNORED, IGNORED)
    counts = torch.zeros(2, num_classes, dtype=torch.float64, device=target.device)
    for number in torch.cat([predicted, target]).unique().tolist():
        if number == IGNORED:
            continue
        ours, true = (boundary(classes == number, width) for classes in (predicted, target))
        counts[0, number], counts[1, number] = (ours & true).sum(), (ours | true).sum()
    return counts


def boundary(masks: Tensor, width: int) -> Tensor:
    """The pixels of masks ``(B, H, W)`` that are up to ``width`` steps from the outside.

    A step goes to one of eight neighbours. A pixel is inside if its whole square is: sums over the
    squares come from an integral image, so that their size costs nothing.
    """
    side = 2 * width + 1
    # One more row and column before them, so that differences begin at the first.
    sums = F.pad(masks.int(), (width + 1, width, width + 1, width)).cumsum(1).cumsum(2)
    rows = sums[:, side:] - sums[:, :-side]
    squares = rows[:, :, side:] - rows[:, :, :-side]
    return masks & (squares < side**2)


def iou(counts: Tensor) -> Tensor:
    """IoU of each class ``(classes,)`` from their :func:`confusion`; NaN without truth or guess."""
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def boundary_iou(counts: Tensor) -> Tensor:
    """IoU of each class's boundary ``(classes,)`` from :func:`boundary_counts`; NaN as there."""
    return counts[0] / counts[1]
