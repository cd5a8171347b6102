"""Mean average precision of found boxes, as COCO measures it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..console import UserError

NO_BOX = -1  # the class of a row of a target that is no box


def mean_average_precision(
    found: Sequence[Tensor], truth: Sequence[Tensor], num_classes: int
) -> dict[str, Any]:
    """The scores of all images together: they are no sum over images.

    Args:
        found: Of each image ``(N, 6)``: x1, y1, x2, y2, score, class. The best 100 count.
        truth: Of each image ``(M, 5)``: x1, y1, x2, y2, class; rows of class -1 are none.
        num_classes: How many classes there are.

    Returns:
        In percent ``map50``, at an IoU of 0.5, ``map``, the mean over 0.5, 0.55 .. 0.95, and
        ``ap``, that of each class; NaN for a class of which there is no truth.

    Raises:
        UserError: If torchmetrics or pycocotools is not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(backend="pycocotools", class_metrics=True)
    except ModuleNotFoundError as error:
        raise UserError(
            "The scores of detection need torchmetrics and pycocotools, which are not installed; "
            "pip install torchmetrics pycocotools adds them."
        ) from error
    boxes = [rows[rows[:, 4] != NO_BOX] for rows in truth]
    metric.update(
        [{"boxes": r[:, :4], "scores": r[:, 4], "labels": r[:, 5].long()} for r in found],
        [{"boxes": r[:, :4], "labels": r[:, 4].long()} for r in boxes],
    )
    scores = metric.compute()
    ap = torch.full((num_classes,), torch.nan)
    ap[scores["classes"].flatten().long()] = scores["map_per_class"].flatten().float()
    return {
        "map50": 100 * scores["map_50"].item(),
        "map": 100 * scores["map"].item(),
        "ap": (100 * ap.where(ap >= 0, torch.nan)).tolist(),
    }
