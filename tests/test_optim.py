"""Which parameters decay, and at which rate they learn, in the optimizers of the recipe."""

from argparse import Namespace

import pytest
import torch

import man_zoo
from man_zoo.training.optim import create_optimizers

TINY_VIT = {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2}


def groups(model: man_zoo.LocalModel, layer_decay: float | None, filter_1d: bool) -> list[dict]:
    args = Namespace(
        opt="adamw",
        lr=0.1,
        weight_decay=0.05,
        momentum=0.9,
        filter_bias_and_bn=filter_1d,
        layer_decay=layer_decay,
        opt_kwargs={},
    )
    return [
        group
        for each in create_optimizers(args, model, model.blocks)
        for group in each.param_groups
    ]


def decayed(groups: list[dict]) -> set[int]:
    return {id(p) for group in groups for p in group["params"] if group["weight_decay"]}


@pytest.mark.parametrize("method", ["man_dgl", "manpp_infopro"])
def test_layer_decay_spares_the_same_parameters_as_a_single_rate(method: str) -> None:
    model = man_zoo.localize("resnet18", method, 3, img_size=32, num_classes=10)
    matrices = {id(p) for p in model.parameters() if p.requires_grad and p.ndim > 1}
    assert decayed(groups(model, None, True)) == matrices
    assert decayed(groups(model, 0.7, True)) == matrices
    assert decayed(groups(model, 0.7, False)) > matrices


def test_layer_decay_spares_what_the_backbone_wants_and_its_copies() -> None:
    model = man_zoo.localize("beit_base_patch16_224", "manpp_dgl", 2, num_classes=10, **TINY_VIT)
    spared = ("cls_token", "pos_embed", "relative_position_bias_table")
    wanted = {
        id(p)
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim > 1 and not name.endswith(spared)
    }
    assert decayed(groups(model, 0.7, True)) == wanted


def test_auxiliaries_learn_at_the_full_rate() -> None:
    model = man_zoo.localize("resnet20", "man_dgl", 4)
    scales = {id(p): g["lr_scale"] for g in groups(model, 0.5, True) for p in g["params"]}
    assert scales.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    assert {scales[id(p)] for p in model.auxiliaries.parameters()} == {1.0}
    assert scales[id(model.backbone.conv1.weight)] == min(scales.values()) < 0.1


def test_averages_are_loaded_that_were_saved_when_the_scale_had_no_dimension() -> None:
    args = Namespace(
        **{"opt": "adamw", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "layer_decay": None},
        **{"filter_bias_and_bn": False, "opt_kwargs": {}},
    )
    model = man_zoo.localize("resnet20", "manpp_dgl", 2, num_classes=10)
    model.local_step(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    optimizer = create_optimizers(args, model, model.blocks)[0]
    optimizer.step()
    saved = optimizer.state_dict()
    scale = next(i for i, values in saved["state"].items() if values["exp_avg"].shape == (1,))
    for key in ("exp_avg", "exp_avg_sq"):
        saved["state"][scale][key] = saved["state"][scale][key][0]
    optimizer.load_state_dict(saved)
    optimizer.step()
    state = optimizer.state[model.auxiliaries[0].momentum.scale]
    assert {key: value.dim() for key, value in state.items()} == {
        **{"step": 0, "exp_avg": 1, "exp_avg_sq": 1}
    }
