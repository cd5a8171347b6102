"""Modes of recomputation: each learns what none learns, bit for bit, in every family."""

import copy

import pytest
import timm
import torch
from test_families import CASES, Case
from timm.optim import create_optimizer_v2

import man_zoo
from man_zoo.meter import StepCost, fake, measure
from man_zoo.planner import Planner, Setting
from man_zoo.recompute import modes_of

# Beside every family: gates, anti-aliasing, attention of other kinds, drop path, in-place factors.
ODD = [
    Case("seresnet50", keywords={"layers": (1, 1, 1, 1), "drop_path_rate": 0.3}),
    Case("resnetaa50d", keywords={"layers": (1, 1, 1, 1)}),
    Case("test_nfnet", keywords={"skipinit": True}),
    Case("test_vit", keywords={"img_size": 32, "drop_path_rate": 0.3, "proj_drop_rate": 0.1}),
    Case("convmixer_768_32"),
]

BATCH = 128


def learnt(model: man_zoo.LocalModel, size: int) -> dict[str, torch.Tensor]:
    """Losses, weights and buffers after two steps in float64."""
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    result = {}
    for step in range(2):
        images = torch.randn(2, 3, size, size, dtype=torch.float64)
        result[f"losses {step}"] = model.local_step(images, torch.tensor([1, 3])).losses
        optimizer.step()
        optimizer.zero_grad()
    return result | model.state_dict()


def localized(case: Case, recompute: str | None = None) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    model = man_zoo.localize(
        case.name,
        "e2e",
        num_classes=10,
        recompute=recompute,
        **{"img_size": case.size, **case.keywords},
    )
    return model.double().train()


@pytest.mark.parametrize("case", CASES + ODD, ids=str)
def test_every_mode_learns_the_same(case):
    plain = localized(case)
    modes = dict.fromkeys(mode for unit in plain.blocks[0].units for mode in modes_of(unit))
    expected = learnt(plain, case.size)
    for mode in modes:
        result = learnt(localized(case, mode), case.size)
        for name, tensor in expected.items():
            assert torch.equal(tensor, result[name]), (mode, name)


# What a mode costs, and how it is named -----------------------------------------------------------


def planner(backbone: str, method: str, size: int = 64) -> Planner:
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=10)
    setting = Setting(BATCH, device="cpu")
    return Planner(model, backbone, method, {}, (3, size, size), setting)


def cost(mode: str | None) -> tuple[int, int, int]:
    """Of a bottleneck: bytes alive after its forward pass, most in backward, arithmetic."""
    piece = planner("resnet50", "e2e")._model(None).unit(2, first=False, recompute=mode)
    return piece.saved, piece.backward_peak, piece.flops


def test_each_mode_of_a_bottleneck_takes_less_memory_than_the_one_before():
    costs = [cost(mode) for mode in (None, "selective", "expansions", "stepwise", "sparing")]
    saved, peaks, flops = zip(*costs, strict=True)
    assert flops[0] == flops[1]  # no convolution runs again
    assert list(flops) == sorted(flops)
    assert saved[0] > saved[1] > saved[2] > saved[3] == saved[4]
    assert peaks[0] > peaks[1] > peaks[2] >= peaks[3] > peaks[4]
    at_once = cost("all")
    assert peaks[3] < 0.8 * at_once[1]
    assert flops[3] <= at_once[2]


def metered(model: man_zoo.LocalModel, size: int) -> StepCost:
    """A real training step on fake tensors, an SGD a block."""
    with fake(model.train()) as model:
        images, target = torch.empty(BATCH, 3, size, size), torch.empty(BATCH, dtype=torch.long)
        optimizers = [create_optimizer_v2(block, opt="sgd", lr=0.1) for block in model.blocks]

        def update(j: int) -> None:
            optimizers[j].step()
            optimizers[j].zero_grad()

        def step() -> None:
            model.local_step(images, target, step=update)

        return measure(step, resident=[model, *optimizers, images, target])


PLANS = [
    ("resnet50", 3, "selective"),
    ("resnet50", 3, "units=sparing layer2.0=expansions auxiliaries.1=stepwise"),
    ("vit_tiny_patch16_224", 2, "selective, blocks.0=attention, blocks.1=mlp"),
    ("test_convnext", 2, "stepwise"),
]


@pytest.mark.parametrize(("backbone", "k", "recompute"), PLANS)
def test_the_planner_predicts_the_cost_of_modes(backbone, k, recompute):
    size = 224 if "vit" in backbone else 64
    plan = planner(backbone, "man_dgl", size).cuts(k, "even", recompute)
    model = man_zoo.localize(
        backbone, "man_dgl", k, cuts="even", recompute=recompute, num_classes=10, img_size=size
    )
    step = metered(model, size)
    assert plan.cost.peak == pytest.approx(step.peak_bytes, rel=0.03)
    assert plan.cost.total == pytest.approx(step.flops, rel=1e-6)


def test_a_plan_takes_no_mode_that_it_does_not_need():
    plans = planner("resnet18", "e2e")
    usual = plans.end_to_end().cost.peak
    assert not plans.within(usual).split.units
    tight = plans.within(usual * 90 // 100)
    assert tight.split.units
    # The same plan again, from what it says of itself.
    again = plans.end_to_end(tight.spec.recompute)
    assert again.cost.peak == tight.cost.peak


def test_names():
    model = man_zoo.localize(
        "resnet20", "dgl", k=2, img_size=32,
        recompute="selective layer1.0=stepwise, layer1.1 auxiliaries=sparing",
    )  # fmt: skip
    modes = dict.fromkeys(range(5), "selective") | {1: "stepwise", 2: "all"}
    assert model.blocks[0].recompute == modes
    assert set(model.blocks[1].recompute.values()) == {"selective"}
    assert model.auxiliaries[0].recompute == "sparing"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("layer1.0=selectiv", "Unknown mode of recompute for layer1.0 'selectiv'.*'selective'"),
        ("selectve", "Unknown recompute 'selectve'.*The nearest is 'selective'"),
        ("layer1.0=attention", "Unknown mode of recompute for layer1.0 'attention'"),
        ("attention", "Unknown mode of recompute for attention 'attention'"),
        ("auxiliaries=mlp", "Unknown mode of recompute for auxiliaries 'mlp'"),
        ("layer1.0=", "Unknown mode of recompute for layer1.0 ''"),
    ],
)
def test_a_wrong_name_is_one_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        man_zoo.localize("resnet20", "dgl", k=2, img_size=32, recompute=wrong)
