"""Scores of boxes, as COCO's own code gives them."""

import math
import sys

import pytest
import torch

from man_zoo.console import UserError
from man_zoo.tasks.mean_average_precision import mean_average_precision

TRUTH = [
    torch.tensor([[0, 0, 20, 20, 0], [40, 40, 60, 60, 1], [0, 0, 0, 0, -1]]).float(),
    torch.tensor([[10, 10, 30, 30, 0], [0, 0, 0, 0, -1], [0, 0, 0, 0, -1]]).float(),
]
NOTHING = torch.zeros(0, 6)


def found(truth, shift=0.0):
    rows = truth[truth[:, 4] >= 0].clone()
    rows[:, [0, 2]] += shift
    return torch.cat([rows[:, :4], torch.full((len(rows), 1), 0.9), rows[:, 4:]], dim=1)


def test_all_found():
    scores = mean_average_precision([found(rows) for rows in TRUTH], TRUTH, 3)
    assert scores["map50"] == scores["map"] == 100
    assert scores["ap"][:2] == [100, 100]
    assert math.isnan(scores["ap"][2])


def test_boxes_beside_the_truth_are_found_at_some_thresholds():
    """Shifted by 3 of 20 pixels the IoU is 17 / 23 = 0.739: right at 0.5 to 0.7, five of ten."""
    scores = mean_average_precision([found(rows, 3) for rows in TRUTH], TRUTH, 2)
    assert scores["map50"] == 100
    assert scores["map"] == pytest.approx(50)


def test_half_is_found():
    scores = mean_average_precision([found(TRUTH[0]), NOTHING], TRUTH, 2)
    assert scores["ap"] == pytest.approx([51 / 101 * 100, 100])  # recall 0 .. 0.5 of 101 levels
    wrong = [found(rows) for rows in TRUTH]
    for rows in wrong:
        rows[:, 5] = 1 - rows[:, 5]
    assert mean_average_precision(wrong, TRUTH, 2)["map50"] == 0


def test_nothing_is_found():
    assert mean_average_precision([NOTHING] * 2, TRUTH, 2)["map50"] == 0


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(UserError, match=r"need torchmetrics and pycocotools.*pip install"):
        mean_average_precision([NOTHING], TRUTH[:1], 2)
