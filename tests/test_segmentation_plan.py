"""Plans for segmentation against the meter on real training steps, and the command."""

import pytest
import timm
import torch

import man_zoo
from man_zoo.benchmark.step import live_cost
from man_zoo.commands.plan import main
from man_zoo.planner import Planner, Setting
from man_zoo.planner.alternatives import END_TO_END, meter_step
from man_zoo.tasks import Segmentation

SIZE, CLASSES = (64, 128), 19


def planner(
    method: str, decoder: str = "deeplabv3", backbone: str = "resnet18", stride: int = 8, **setting
) -> Planner:
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=0, output_stride=stride)
    step = Setting(**({"batch_size": 16} | setting))
    task = Segmentation(CLASSES, decoder)
    return Planner(model, backbone, method, {}, (3, *SIZE), step, task=task)


def localize(method: str, k: int | None, decoder: str = "deeplabv3", stride: int = 8, **keywords):
    return man_zoo.localize(
        keywords.pop("backbone", "resnet18"), method, k, task="segmentation", num_classes=CLASSES,
        decoder=decoder, output_stride=stride, img_size=SIZE, **keywords,
    ).train()  # fmt: skip


@pytest.mark.parametrize(
    ("method", "k", "decoder", "setting"),
    [
        ("e2e", 1, "deeplabv3", {}),
        ("dgl", 2, "deeplabv3", {}),
        ("infopro", 3, "deeplabv3", {"channels_last": True}),
        ("man_dgl", 4, "deeplabv3", {}),
        ("e2e", 1, "fpn", {}),
        ("man_dgl", 4, "fpn", {}),
        ("dgl", 8, "fpn", {"batch_size": 128}),  # maps on their way are a twentieth of the peak
        ("infopro", 3, "fpn", {"micro_batches": 2}),
        ("overlap_dgl", 3, "fpn", {"grad_accum_steps": 3}),
    ],
)
def test_the_predicted_cost_is_that_of_a_real_step(method, k, decoder, setting) -> None:
    stride = 8 if decoder == "deeplabv3" else 32
    plans = planner(method, decoder, stride=stride, **setting)
    plan = plans.end_to_end() if method == "e2e" else plans.cuts(k, "even")
    cuts = {} if method == "e2e" else {"cuts": "even"}
    model = localize(method, k, decoder, stride, **cuts)
    if plans.setting.channels_last:
        model = model.to(memory_format=torch.channels_last)
    cost = live_cost(model, plans.setting)
    assert plan.cost.peak == pytest.approx(cost.peak_bytes, rel=0.03)
    batches = plans.setting.grad_accum_steps
    assert plan.cost.total * batches == cost.flops


def test_end_to_end_costs_what_training_the_network_does() -> None:
    plans = planner("dgl", "fpn")
    assert plans.end_to_end().cost.peak == pytest.approx(
        meter_step(plans, END_TO_END).peak, rel=0.01
    )


def test_a_dense_target_is_counted() -> None:
    plan = planner("dgl").cuts(2, "even")
    assert all(block.target == 16 * SIZE[0] * SIZE[1] * 8 for block in plan.cost.blocks)


@pytest.mark.parametrize("decoder", ["deeplabv3", "fpn"])
def test_what_is_planned_within_a_budget_stays_there(decoder: str) -> None:
    plans = planner("dgl", decoder, batch_size=64)
    budget = plans.end_to_end().cost.peak * 3 // 4
    model = localize("dgl", 3, decoder, memory_budget=budget, batch_size=64)
    assert live_cost(model, plans.setting).peak_bytes <= 1.03 * budget


# The command --------------------------------------------------------------------------------------


def test_the_command_takes_a_crop_and_a_decoder(capsys) -> None:
    words = ["--task", "segmentation", "--img-size", "64x128", "--batch-size", "4"]
    words += ["--method", "dgl", "--output-stride", "8", "--decoder", "fpn"]
    assert main(["resnet18", "--k", "2", *words]) == 0
    said = capsys.readouterr().out
    assert "resnet18_dgl_k2" in said
    for keyword in ("task='segmentation'", "num_classes=19", "decoder='fpn'", "output_stride=8"):
        assert keyword in said
    assert "img_size=(64, 128)" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--img-size", "64x"], "512x1024, got '64x'"),
        (["--img-size", "1x2x3"], "512x1024, got '1x2x3'"),
        (["--task", "segmentation", "--decoder", "fpm"], "Unknown decoder of segmentation 'fpm'"),
        (["--decoder", "fpn"], "--num-classes and --decoder are a dense task's"),
        (["--output-stride", "9"], "invalid choice: 9"),
        (["--task", "segmentation", "--method", "predsim"], "predsim compares the labels"),
        (["--task", "segmentation", "--batch-size", "1"], "A batch of 1 is too small"),
        (
            ["--task", "segmentation", "--decoder", "fpn", "--processes", "2", "--method", "dgl"],
            "block parallelism passes one on",
        ),
    ],
)
def test_what_the_command_cannot_plan(words, sentence, capsys) -> None:
    try:
        status = main(["resnet18", "--k", "2", *words])
    except SystemExit as end:  # argparse
        status = end.code
    assert status != 0
    assert sentence in capsys.readouterr().err
