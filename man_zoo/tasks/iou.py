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
    ours, true = boundary(predicted, width), boundary(target, width)
    both = _count(target[ours & true & (predicted == target)], num_classes)
    either = _count(predicted[ours], num_classes) + _count(target[true], num_classes) - both
    return torch.stack([both, either]).double()


def boundary(classes: Tensor, width: int) -> Tensor:
    """The pixels ``(B, H, W)`` that are up to ``width`` steps from one of another class.

    A step goes to one of eight neighbours, and outside of an image is a class of its own. A pixel
    is far from all if nothing changes, across or down, within its square. Changes are counted by
    differences of running sums, to which the size of a square is nothing.

    Args:
        classes: ``(B, H, W)``.
        width: Steps.
    """
    padded = F.pad(classes, [width] * 4, value=-1)
    across = _sums(padded[:, :, 1:] != padded[:, :, :-1], 2 * width + 1, 2 * width)
    down = _sums(padded[:, 1:] != padded[:, :-1], 2 * width, 2 * width + 1)
    return (across + down) > 0


def _sums(counted: Tensor, height: int, width: int) -> Tensor:
    """How many of ``(B, H, W)`` are true in every window of a size."""
    sums = F.pad(counted.int(), (1, 0, 1, 0)).cumsum(1, dtype=torch.int32)
    sums = (sums[:, height:] - sums[:, :-height]).cumsum(2, dtype=torch.int32)
    return sums[:, :, width:] - sums[:, :, :-width]


def _count(classes: Tensor, num_classes: int) -> Tensor:
    return classes.bincount(minlength=IGNORED + 1)[:num_classes]


def iou(counts: Tensor) -> Tensor:
    """IoU of each class ``(classes,)`` from their :func:`confusion`; NaN without truth or guess."""
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def boundary_iou(counts: Tensor) -> Tensor:
    """IoU of each class's boundary ``(classes,)`` from :func:`boundary_counts`; NaN as there."""
    return counts[0] / counts[1]
