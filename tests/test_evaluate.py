"""Scores beside those worked out by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

import man_zoo
from man_zoo import BlockParallel
from man_zoo.commands.evaluate import _with_report
from man_zoo.tasks import Classification
from man_zoo.training.evaluate import evaluate_exits, validate

CLASSES = 7  # more than five


@pytest.fixture
def accelerator() -> Accelerator:
    GradientState._reset_state()
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True)


def model_and_images(
    method: str = "dgl", **keywords
) -> tuple[man_zoo.LocalModel, Tensor, Tensor, list]:
    """A model in training mode, images, their classes, and both as uneven batches."""
    torch.manual_seed(0)
    model = man_zoo.localize(
        "resnet20", method, 3, num_classes=CLASSES, img_size=8, **keywords
    ).double()
    images = torch.randn(13, 3, 8, 8, dtype=torch.float64)
    target = torch.randint(CLASSES, (13,))
    batches = list(zip(images.split(5), target.split(5), strict=True))
    return model.train(), images, target, batches


def by_hand(logits: Tensor, target: Tensor) -> dict[str, float]:
    ranks = [(row > row[y]).sum() for row, y in zip(logits, target, strict=True)]
    return {
        "top1": 100 * sum(rank < 1 for rank in ranks).item() / len(target),
        "top5": 100 * sum(rank < 5 for rank in ranks).item() / len(target),
        "loss": F.cross_entropy(logits, target).item(),
    }


def test_equal_logits_are_ranked_alike_wherever_they_are_counted() -> None:
    """In bf16 many are equal, and argmax may take another one than topk."""
    torch.manual_seed(0)
    logits = torch.randint(3, (200, CLASSES)).bfloat16()
    target = torch.randint(CLASSES, (200,))
    hits, _, _ = Classification(CLASSES).sums(logits, target)
    forward = {"images": logits}
    data = SimpleNamespace(num_classes=CLASSES, names=[str(c) for c in range(CLASSES)])

    def run(predict, batches) -> dict:
        for images, _ in batches:
            predict(images)
        return {}

    found = _with_report(run, lambda images: [forward[images]], [("images", target)], data)
    (line,) = (line for line in found["report"].splitlines() if "accuracy" in line)
    assert float(line.split()[1]) == hits.item() / 200


@torch.no_grad()
def test_every_exit_is_scored_over_all_images_in_evaluation_mode(accelerator):
    model, images, target, batches = model_and_images()
    exits = copy.deepcopy(model).eval().forward_exits(images)
    before = [buffer.clone() for buffer in model.buffers()]
    scores = evaluate_exits(accelerator, Classification(CLASSES), model, batches)
    expected = [by_hand(logits, target) for logits in exits]
    assert scores.pop("exits") == pytest.approx([score["top1"] for score in expected])
    assert scores == pytest.approx(expected[-1] | {"count": 13}, rel=1e-5)  # summed up in float32
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


@torch.no_grad()
def test_the_backbone_is_validated_in_evaluation_mode(accelerator):
    model, images, target, batches = model_and_images()
    logits = copy.deepcopy(model).eval()(images)
    parallel = BlockParallel(model, [range(len(model.blocks))])
    task, backbone = Classification(CLASSES), model.backbone
    scores = validate(accelerator, task, parallel, backbone, batches, "val")
    expected = {f"val_{key}": value for key, value in by_hand(logits, target).items()}
    assert scores == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_exits_that_cannot_classify_have_no_score(accelerator):
    model, images, target, batches = model_and_images("infopro", local_loss="contrast")
    logits = copy.deepcopy(model).eval()(images)
    scores = evaluate_exits(accelerator, Classification(CLASSES), model, batches)
    expected = by_hand(logits, target)["top1"]
    assert scores["exits"] == [None, None, pytest.approx(expected)]
