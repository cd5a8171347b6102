"""Plans for detection against the meter on real training steps, and the command."""

import pytest
import timm
import torch

import man_zoo
from man_zoo.benchmark.step import live_cost
from man_zoo.commands.plan import main
from man_zoo.planner import Planner, Setting
from man_zoo.tasks import Detection

SIZE = (64, 128)


@pytest.mark.parametrize(
    ("method", "k", "decoder"),
    [
        ("e2e", 1, "retinanet"),
        ("dgl", 4, "retinanet"),
        ("infopro", 3, "retinanet"),
        ("man_dgl", 4, "retinanet_v2"),
    ],
)
def test_the_predicted_cost_is_that_of_a_real_step(method, k, decoder) -> None:
    with torch.device("meta"):
        backbone = timm.create_model("resnet18", num_classes=0)
    task = Detection(20, decoder, anchor_size=8, pyramid_width=64)
    plans = Planner(backbone, "resnet18", method, {}, (3, *SIZE), Setting(8), task=task)
    plan = plans.end_to_end() if method == "e2e" else plans.cuts(k, "even")
    model = man_zoo.localize(
        "resnet18", method, k, task="detection", num_classes=20, decoder=decoder, img_size=SIZE,
        anchor_size=8, pyramid_width=64, **({} if method == "e2e" else {"cuts": "even"}),
    ).train()  # fmt: skip
    cost = live_cost(model, plans.setting)
    assert plan.cost.peak == pytest.approx(cost.peak_bytes, rel=0.03)
    assert plan.cost.total == cost.flops


def test_the_command_plans_a_retinanet(capsys) -> None:
    words = "resnet50 --method man_dgl --k 4 --task detection --img-size 64x128"
    main([*words.split(), "--batch-size", "2", "--cuts", "stages"], "man-zoo plan")
    said = capsys.readouterr().out
    assert "layer1.2" in said
    assert "layer3.5" in said
