"""The planner against the meter: each thing that a step can be, where it decides over the peak."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState

import man_zoo
from man_zoo.benchmark.planner_check import Combination, check, combinations
from man_zoo.benchmark.step import Training
from man_zoo.commands import check_planner
from man_zoo.meter import LiveBytes
from man_zoo.parallel.data_parallel import PlainReplica
from man_zoo.planner import Planner, Setting
from man_zoo.runs.config import parse_args
from man_zoo.runs.model import step_setting
from man_zoo.training.setup import create_accelerator
from man_zoo.training.trainer import create_trainer

CASES = {
    "an output that nobody saves": ("nf_resnet26", "dgl", Setting(4)),
    "an output that is cast before it is saved": (
        "convnext_atto",
        "dgl",
        Setting(8, "sgd", "bf16"),
    ),
    "CUDA's float32 norms": ("swin_tiny_patch4_window7_224", "dgl", Setting(2, "sgd", "bf16")),
    "a foreach optimizer": ("resnet18", "dgl", Setting(2, "adamw")),
    "two batches to an update": ("resnet18", "dgl", Setting(2, grad_accum_steps=2)),
    "three batches to an update": ("resnet18", "man_dgl", Setting(2, grad_accum_steps=3)),
    "an average of the weights": ("resnet18", "dgl", Setting(2, model_ema=True)),
    "channels last": ("convnext_atto", "dgl", Setting(8, channels_last=True)),
    "mixed targets": ("resnet20", "infopro", Setting(4, soft_target=True)),
    "keywords of the optimizer": ("resnet18", "dgl", Setting(2, opt_kwargs={"weight_decay": 0})),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_the_step(name) -> None:
    backbone, method, setting = CASES[name]
    outcome = check(Combination(backbone, method, 2, None, setting))
    assert outcome.planned == pytest.approx(outcome.metered, rel=0.01)


# Recomputed units save no casts of their weights, yet these live until InfoPro's peak; with two
# batches to an update, gradients do not outweigh them.
CASTS = Setting(2, "sgd", "bf16", "cpu", grad_accum_steps=2)


def test_the_casts_that_autocast_keeps_through_a_block_are_counted() -> None:
    outcome = check(Combination("resnetv2_18", "infopro", 2, "selective", CASTS))
    assert outcome.planned == pytest.approx(outcome.metered, rel=0.01)


def planner(name: str, size: int, setting: Setting) -> Planner:
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=10)
    return Planner(backbone, name, "infopro", {}, (3, size, size), setting)


def test_a_budget_has_room_for_the_casts_that_autocast_keeps() -> None:
    one = planner("vit_tiny_patch16_224", 224, replace(CASTS, batch_size=1, grad_accum_steps=4))
    budget = one.balanced(2, "selective").cost.peak
    assert one.within(budget, 2, "selective").cost.peak <= budget


def test_cuts_are_balanced_for_two_batches_to_an_update() -> None:
    # A search counts gradients that are never all there, and must not call its own least too much.
    assert planner("resnetv2_18", 64, CASTS).balanced(2, "selective").spec.k == 2


@pytest.fixture
def on_cpu(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    GradientState._reset_state()
    AcceleratorState._reset_state(True)


FLAGS = {
    "accumulation, average, mixup": ["--grad-accum-steps", "2", "--model-ema", "--mixup", "0.5"],
    "AdamW, bf16": ["--opt", "adamw", "--mixed-precision", "bf16"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_the_plan_of_a_runs_flags_is_its_trainers_step(on_cpu, name) -> None:
    words = ["--model", "resnet18", "--method", "dgl", "--k", "2", "--cuts", "even"]
    args = parse_args([*words, "--batch-size", "4", "--cpu-threads", "1", *FLAGS[name]])
    accelerator = create_accelerator(args, Path("unused"))
    model = man_zoo.localize("resnet18", "dgl", 2, cuts="even", num_classes=10, img_size=64)
    planner = Planner(model.backbone, "resnet18", "dgl", {}, (3, 64, 64), step_setting(args))
    trainer = create_trainer(args, accelerator, model, batches=4)
    trainer.start_epoch(0)
    with LiveBytes().track(model, trainer.ema, *trainer.optimizers) as live:
        for batch in range(4):
            if batch == 2:
                live.reset_peak()
            images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
            trainer.observer.begin(trainer.updates + 1, False)
            trainer.train_batch(images, torch.randint(10, (4,)))
            del images
    assert planner.cuts(2, "even").cost.peak == pytest.approx(live.peak, rel=0.03)


def test_the_buckets_of_data_parallelism_are_counted(tmp_path) -> None:
    setting = Setting(4, device="cpu", processes=2)
    model = man_zoo.localize("resnet18", "dgl", 2, cuts="even", num_classes=10, img_size=64)
    plan = Planner(model.backbone, "resnet18", "dgl", {}, (3, 64, 64), setting).cuts(2, "even")
    # Buckets are as large however many processes there are.
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        training = Training(model.train(), setting)
        training.forwards = [PlainReplica(block) for block in model.blocks]
        with LiveBytes().track(*training.resident) as live:
            training.step()
            live.reset_peak()
            training.step()
    finally:
        dist.destroy_process_group()
    assert plan.cost.peak == pytest.approx(live.peak, rel=0.03)


def test_localize_plans_for_the_step_that_is_meant() -> None:
    keywords = {"k": 3, "num_classes": 10, "batch_size": 4, "opt": "adamw"}
    man_zoo.localize("resnet20", "dgl", memory_budget="6.4MiB", **keywords)
    keywords |= {"grad_accum_steps": 2, "model_ema": True}
    with pytest.raises(ValueError, match="does not fit"):
        man_zoo.localize("resnet20", "dgl", memory_budget="6.4MiB", **keywords)


def test_the_command_that_checks_writes_a_page_and_fails_where_a_plan_is_off(
    tmp_path, monkeypatch, capsys
) -> None:
    path = tmp_path / "page.md"
    assert check_planner.main(["--count", "1", "--page", str(path)]) == 0
    assert "Of 1 steps the largest deviation is 0.0" in capsys.readouterr().out
    assert f"| {next(combinations(0)).backbone} |" in path.read_text()
    monkeypatch.setattr(check_planner, "LIMIT", -1)
    assert check_planner.main(["--count", "1"]) == 1
    assert "1 of 1 plans are off" in capsys.readouterr().err
