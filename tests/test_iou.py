"""Scores of masks: counts that add up, and boundaries as their authors take them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from man_zoo.tasks.iou import boundary, boundary_counts, boundary_iou, confusion, iou

CLASSES = 3


def blobs(seed, count=4, size=(37, 52), ignored=0.0):
    """Classes in patches, as in a picture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(CLASSES, (count, 5, 6), generator=generator)
    classes = torch.nn.functional.interpolate(coarse[:, None].float(), size)[:, 0].long()
    classes[torch.rand(classes.shape, generator=generator) < ignored] = 255
    return classes


def test_iou_by_hand():
    target = torch.tensor([[[0, 0, 1, 1], [0, 2, 255, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [0, 0, 2, 0]]])
    counts = confusion(predicted, target, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert iou(counts)[:3].tolist() == [2 / 4, 2 / 3, 0]
    assert iou(counts)[3].isnan()


@pytest.mark.parametrize("score", [confusion, boundary_counts])
def test_counts_of_batches_add_up(score):
    predicted, target = blobs(0, 6), blobs(1, 6, ignored=0.1)
    parts = zip(predicted.split([1, 3, 2]), target.split([1, 3, 2]), strict=True)
    total = sum(score(*part, CLASSES) for part in parts)
    assert torch.equal(total, score(predicted, target, CLASSES))
    assert total.dtype == torch.float64


@pytest.mark.parametrize("width", [1, 2, 7, 40])
def test_a_boundary_is_what_erosion_takes_away(width):
    """The authors' ``mask_to_boundary``, with scipy in OpenCV's place."""
    masks = blobs(2) == 1
    expected = []
    for mask in masks.numpy():
        inside = binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
        expected.append(mask & ~inside)
    assert torch.equal(boundary(masks.long(), width) & masks, torch.from_numpy(np.stack(expected)))


def test_boundaries_of_all_classes_are_those_of_each():
    predicted, target = blobs(4), blobs(5, ignored=0.02)
    counts = boundary_counts(predicted, target, CLASSES)
    predicted[target == 255] = 255
    width = round(0.02 * np.hypot(37, 52))
    for number in range(CLASSES):
        masks = [(classes == number) for classes in (predicted, target)]
        ours, true = [boundary(mask.long(), width) & mask for mask in masks]
        assert counts[:, number].tolist() == [(ours & true).sum(), (ours | true).sum()]


def test_boundary_iou_sees_an_outline_that_iou_does_not():
    target = torch.zeros(1, 200, 200, dtype=torch.long)
    target[:, 20:180, 20:180] = 1
    predicted = torch.zeros_like(target)
    predicted[:, 23:177, 23:177] = 1
    whole = iou(confusion(predicted, target, 2))[1].item()
    outline = boundary_iou(boundary_counts(predicted, target, 2))[1].item()
    assert whole == pytest.approx(154**2 / 160**2)
    # Six pixels wide, as 0.02 of the diagonal: rings 160 to 148 and 154 to 142 pixels across.
    assert outline == pytest.approx((154**2 - 148**2) / (160**2 - 142**2))


def test_what_does_not_count_is_in_no_boundary():
    target = blobs(3)
    predicted = target.clone()
    target[:, :, 30:] = 255
    predicted[:, :, 30:] = 2 - predicted[:, :, 30:]
    assert boundary_iou(boundary_counts(predicted, target, CLASSES)).tolist() == [1, 1, 1]
    nothing = boundary_counts(predicted, torch.full_like(target, 255), CLASSES)
    assert nothing.tolist() == [[0] * CLASSES] * 2
