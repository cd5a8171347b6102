"""The planner against the meter: each thing that a step can be, where it decides over the peak."""

import pytest

from man_zoo.benchmark.planner_check import Combination, check
from man_zoo.planner import Setting

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
