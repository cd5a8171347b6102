"""The planner's figures against the meter on real training steps, and its answers."""

import random

import pytest
import timm
import torch

import man_zoo
from man_zoo.benchmark.step import live_cost
from man_zoo.meter import StepCost, fake, measure
from man_zoo.planner import Planner, Setting, budget_bytes

BATCH = 16
SIZES = {
    "resnet18": 64,
    "resnet50": 64,
    "resnet20": 32,
    "resnet32": 32,
    "vit_tiny_patch16_224": 224,
}
METHODS = [
    *("dgl", "infopro", "predsim", "auglocal"),
    *("man_dgl", "man_infopro", "man_predsim", "man_auglocal"),
    *("manpp_dgl", "manpp_infopro"),
]


def planner(backbone: str, method: str, *setting, **keywords) -> Planner:
    """For ten classes; ``setting`` is batch, optimizer, precision."""
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=10)
    size = SIZES[backbone]
    return Planner(
        model, backbone, method, keywords, (3, size, size), Setting(*(setting or (BATCH,)))
    )


def metered(model: man_zoo.LocalModel, *setting) -> StepCost:
    """A real training step on fake tensors; ``setting`` as there."""
    return live_cost(model.train(), Setting(*(setting or (BATCH,))))


def random_choices() -> list[tuple]:
    rng = random.Random(0)
    choices = []
    for method in METHODS:
        backbone = rng.choice(list(SIZES))
        k = rng.randint(2, 6)
        recompute = rng.choice([None, "units", "auxiliaries", "all"])
        choices.append((backbone, method, k, recompute))
    return choices


@pytest.mark.parametrize(("backbone", "method", "k", "recompute"), random_choices())
def test_the_predicted_cost_is_that_of_a_real_step(backbone, method, k, recompute):
    plan = planner(backbone, method).cuts(k, "even", recompute)
    model = man_zoo.localize(
        backbone, method, k, cuts="even", recompute=recompute, num_classes=10,
        img_size=SIZES[backbone],
    )  # fmt: skip
    cost = metered(model)
    assert plan.cost.peak == pytest.approx(cost.peak_bytes, rel=0.003)
    assert plan.cost.total == pytest.approx(cost.flops, rel=1e-6)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_where_weights_dominate_and_where_activations_do(batch_size):
    plan = planner("resnet18", "man_dgl", batch_size).cuts(3)
    model = man_zoo.localize("resnet18", "man_dgl", 3, num_classes=10, img_size=64)
    assert plan.cost.peak == pytest.approx(metered(model, batch_size).peak_bytes, rel=0.03)


def test_half_precision():
    plans = [
        planner("resnet18", "man_dgl", 64, "sgd", precision, "cpu") for precision in ("no", "bf16")
    ]
    full, half = (plan.cuts(3, "even") for plan in plans)
    model = man_zoo.localize("resnet18", "man_dgl", 3, cuts="even", num_classes=10, img_size=64)
    assert half.cost.peak == pytest.approx(
        metered(model, 64, "sgd", "bf16", "cpu").peak_bytes, rel=0.03
    )
    assert half.cost.peak < 0.8 * full.cost.peak


def test_the_optimizers_state_is_counted():
    sgd, adamw = (planner("resnet18", "dgl", 2, opt).cuts(2) for opt in ("sgd", "adamw"))
    model = man_zoo.localize("resnet18", "dgl", 2, num_classes=10, img_size=64)
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert adamw.cost.peak - sgd.cost.peak == pytest.approx(weights, rel=0.1)


def test_end_to_end_with_and_without_recomputation():
    plans = planner("resnet50", "man_dgl", BATCH, "sgd", "no", "cpu")
    for recompute in (None, "all"):
        model = man_zoo.localize(
            "resnet50", "e2e", recompute=recompute, num_classes=10, img_size=64
        )
        plan = plans.end_to_end(recompute)
        cost = metered_together(model)
        assert plan.cost.peak == pytest.approx(cost.peak_bytes, rel=0.03)
        assert plan.cost.total == pytest.approx(cost.flops, rel=1e-6)


def metered_together(model: man_zoo.LocalModel) -> StepCost:
    """As metered, with one optimizer over the whole network."""
    with fake(model.train()) as model:
        images, target = torch.empty(BATCH, 3, 64, 64), torch.empty(BATCH, dtype=torch.long)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            model.local_step(images, target, step=lambda _: optimizer.step())

        return measure(step, resident=[model, optimizer, images, target])


def test_balanced_cuts_are_the_best_of_all():
    plans = planner("resnet18", "man_dgl")
    best = plans.balanced(3)
    names = plans.names[:-1]
    every = [
        plans.cuts(3, [first, second]).cost.peak
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    ]
    assert best.cost.peak <= 1.002 * min(every)
    assert best.cost.peak < plans.cuts(3, "even").cost.peak


@pytest.mark.parametrize(
    ("method", "keywords"),
    [
        ("man_dgl", {"momentum_units": 8}),
        ("auglocal", {"aux_depth": 7}),
        ("man_auglocal", {"aux_depth": 7, "momentum_units": 8}),
        ("man_auglocal", {"aux_depth": 1, "momentum_units": 8}),
    ],
)
def test_a_last_block_of_just_the_units_that_it_needs_is_found(method, keywords):
    plan = planner("resnet18", method, **keywords).balanced(2)  # the stem, and eight units
    assert plan.split.cuts == (0,)
    man_zoo.localize("resnet18", method, 2, cuts=plan.spec.cuts, img_size=64, **keywords)


def test_auxiliaries_may_outweigh_the_network():
    plan = planner("resnet18", "dgl", 2, head="wide", width=4096).balanced(8)
    assert plan.memory_ratio > 2


def test_a_budget_is_kept_and_costs_less_the_larger_it_is():
    plans = planner("resnet18", "man_dgl", 128)
    budgets = [plans.smallest().cost.peak * share // 100 for share in (100, 130, 180)]
    found = [plans.within(budget) for budget in budgets]
    assert all(plan.cost.peak <= budget for plan, budget in zip(found, budgets, strict=True))
    ratios = [plan.arithmetic_ratio for plan in found]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[-1]


def test_the_fastest_within_a_budget_is_the_fastest_of_all():
    plans = planner("resnet18", "man_dgl", form="paper")
    names, every = plans.names, []
    for first in names[:-1]:
        for mask in range(2 ** len(names)):
            recompute = [name for bit, name in enumerate(names) if mask >> bit & 1]
            every.append(plans.cuts(2, [first], recompute))
    budget = sorted(plan.cost.peak for plan in every)[len(every) // 20]
    possible = min(plan.cost.total for plan in every if plan.cost.peak <= budget)
    assert plans.within(budget, k=2).cost.total <= possible * 1.001


def test_a_budget_that_cannot_be_met_says_what_the_least_is():
    plans = planner("resnet18", "dgl")
    with pytest.raises(ValueError, match=r"does not fit into 0\.02 GiB at batch 16: the least is"):
        plans.within(20 * 2**20)


@pytest.mark.parametrize("steps", [2, 3])
def test_a_budget_of_the_least_is_met_where_gradients_accumulate(steps):
    with torch.device("meta"):
        model = timm.create_model("resnet18", num_classes=10)
    setting = Setting(8, grad_accum_steps=steps)
    plans = Planner(model, "resnet18", "man_dgl", {}, (3, 64, 64), setting)
    least = plans.balanced(4, "")
    found = plans.within(least.cost.peak, 4, "")
    assert found.cost.peak <= least.cost.peak


def test_a_batch_in_slices_is_another_training_where_the_last_auxiliary_is_shallow():
    # AugLocal's auxiliaries of one unit have a batch norm; here the first is deeper.
    with torch.device("meta"):
        model = timm.create_model("convnext_atto", num_classes=10)
    about = model, "convnext_atto", "auglocal"
    plans = [
        Planner(*about, {"pyramid_coeff": coeff}, (3, 64, 64), Setting(8)) for coeff in (0.0, 1.0)
    ]
    assert [each.divisible for each in plans] == [True, False]


def test_localize_plans():
    model = man_zoo.localize(
        "resnet18", "man_dgl", k=3, cuts="balanced", batch_size=BATCH, num_classes=10, img_size=64
    )
    plan = planner("resnet18", "man_dgl").balanced(3)
    assert model.spec.cuts == plan.spec.cuts
    budget = plan.cost.peak
    model = man_zoo.localize(
        "resnet18", "dgl", memory_budget=budget, batch_size=BATCH, num_classes=10, img_size=64
    )
    assert metered(model).peak_bytes <= 1.03 * budget


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"memory_budget": "much", "batch_size": 8}, "memory_budget='much' is no size"),
        ({"memory_budget": "1GiB"}, "need batch_size="),
        ({"k": 3, "cuts": "balanced"}, "need batch_size="),
        ({"memory_budget": "1GiB", "batch_size": 8, "cuts": "even"}, "chooses the cuts"),
        ({"k": 99, "cuts": "balanced", "batch_size": 8}, "k=99 is impossible"),
        ({"k": 2, "batch_size": 8, "opt": "adamw"}, r"batch_size=, opt= says what a step is"),
    ],
)
def test_bad_requests_are_one_sentence(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        man_zoo.localize("resnet18", "man_dgl", img_size=64, **keywords)


def test_where_nothing_is_planned_the_device_is_timms():
    model = man_zoo.localize("resnet18", "dgl", 2, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_sizes():
    assert budget_bytes("6GiB") == 6 * 2**30
    assert budget_bytes("0.5 GiB") == 2**29
    assert budget_bytes(123) == 123
    assert budget_bytes("6GB") == budget_bytes("6gb") == budget_bytes("6Gb") == 6 * 10**9
    assert budget_bytes(0.5e9) == 5 * 10**8
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is no size"):
            budget_bytes(wrong)
