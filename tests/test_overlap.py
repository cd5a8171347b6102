"""Overlap: an auxiliary begins with the next block's first unit itself, and trains it as well."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from test_planner import metered, planner
from torch import Tensor, nn

import man_zoo
from man_zoo.parallel.places import Places
from man_zoo.parallel.sharded import shard_model
from man_zoo.planner import Setting, place
from man_zoo.runs.config import parse_args
from man_zoo.training.setup import create_accelerator
from man_zoo.training.trainer import create_trainer

BASES = ("dgl", "infopro", "predsim", "auglocal")


def localize(method: str = "overlap_dgl", k: int = 3, **keywords) -> man_zoo.LocalModel:
    """In float64, and small."""
    torch.manual_seed(0)
    model = man_zoo.localize("resnet20", method, k, num_classes=10, img_size=8, **keywords)
    return model.double().train()


def batch(i: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(i)
    return torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator), torch.arange(8)


def shared(model: man_zoo.LocalModel, j: int) -> nn.Module:
    """The unit that block ``j`` and the next one share."""
    return model.blocks[j + 1].units[0]


def assert_close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


# What it is


def test_zoo_names():
    model = timm.create_model("resnet20_overlap_dgl_k4")
    assert (model.spec.method, model.spec.base, model.spec.momentum) == ("overlap_dgl", "dgl", None)
    assert [auxiliary.momentum.unit for auxiliary in model.auxiliaries] == [
        block.units[0] for block in model.blocks[1:]
    ]
    with pytest.raises(ValueError, match="Unknown keyword for overlap_dgl 'form'"):
        timm.create_model("resnet20_overlap_dgl_k4", form="paper")


@pytest.mark.parametrize("base", BASES)
def test_the_unit_is_the_next_blocks_own_and_registered_once(base):
    model = localize(f"overlap_{base}")
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert names | {name for name, _ in model.named_buffers()} >= model.state_dict().keys()
    assert all(".head." in name for name in names if name.startswith("auxiliaries"))
    of_blocks = [id(p) for block in model.blocks for p in block.parameters()]
    assert len(of_blocks) == len(set(of_blocks)) == len(names)


def test_a_copy_shares_its_own_units():
    model = localize()
    twin = copy.deepcopy(model)
    assert [a.momentum.unit for a in twin.auxiliaries] == [shared(twin, 0), shared(twin, 1)]
    assert twin.auxiliaries[0].momentum.unit is not shared(model, 0)
    model.reset_classifier(5)
    assert [a.momentum.unit for a in model.auxiliaries] == [shared(model, 0), shared(model, 1)]


# Gradients


@pytest.mark.parametrize("base", BASES)
def test_a_loss_reaches_its_block_and_the_shared_unit_alone(base):
    model = localize(f"overlap_{base}")
    images, target = batch()
    features, restored = images, model.restore(images)
    for j, block in enumerate(model.blocks):
        features, loss, _ = block(features, target, restored)
        model.zero_grad()
        loss.backward()
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        further = shared(model, j).parameters() if block is not model.blocks[-1] else ()
        assert reached == {id(p) for p in (*block.parameters(), *further)}


@pytest.mark.parametrize("recompute", [None, "all"])
@pytest.mark.parametrize("late", [False, True])
def test_every_update_is_one_step_on_the_sum_of_all_losses(late, recompute):
    model = localize(recompute=recompute)
    by_hand = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(block.parameters(), 0.1, 0.9) for block in model.blocks]
    together = torch.optim.SGD(by_hand.parameters(), 0.1, 0.9)

    def step(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    for i in range(3):
        images, target = batch(i)
        output = model.local_step(images, target, step=step, late=late)
        features, losses = images, []
        for block in by_hand.blocks:
            features, loss, _ = block(features, target)
            losses.append(loss)
        sum(losses).backward()
        together.step()
        together.zero_grad()
        assert_close(output.losses, torch.stack(losses).detach())
    assert_close(list(model.parameters()), list(by_hand.parameters()))


# BatchNorm


@pytest.mark.parametrize("recompute", [None, "auxiliaries", "all"])
def test_batchnorm_counts_a_batch_once(recompute):
    model = localize(recompute=recompute)
    plain = copy.deepcopy(model.backbone)
    images, target = batch()
    model.local_step(images, target)
    plain(images)
    assert_close(list(model.backbone.buffers()), list(plain.buffers()))
    assert all(b == 1 for n, b in model.backbone.named_buffers() if n.endswith("batches_tracked"))


def test_an_exit_in_evaluation_is_the_unit_as_it_is():
    model = localize()
    model.local_step(*batch())
    images, _ = batch(1)
    model.eval()
    features = model.blocks[0].units(images)
    exits = model.forward_exits(images)
    assert_close(exits[0], model.auxiliaries[0].head.classify(shared(model, 0)(features)))


def test_compiled_blocks_learn_the_same():
    model = localize(k=2)
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile(backend="aot_eager", dynamic=False)
    for one in (model, compiled):
        one.local_step(*batch())
    for ours, theirs in zip(model.parameters(), compiled.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)
    assert_close(list(model.buffers()), list(compiled.buffers()))


# Cost


@pytest.mark.parametrize(
    ("backbone", "k", "batch_size", "recompute"),
    [
        ("resnet20", 4, 16, None),
        ("resnet18", 5, 2, "auxiliaries"),
        ("vit_tiny_patch16_224", 6, 2, None),
        ("vit_tiny_patch16_224", 3, 2, "all"),
    ],
)
def test_the_predicted_cost_is_that_of_a_real_step(backbone, k, batch_size, recompute):
    plans = planner(backbone, "overlap_dgl", batch_size, "sgd", "no", "cpu")
    plan = plans.cuts(k, "even", recompute)
    size = {"resnet20": 32, "resnet18": 64}.get(backbone, 224)
    model = man_zoo.localize(
        backbone, "overlap_dgl", k, cuts="even", recompute=recompute, num_classes=10, img_size=size,
    )  # fmt: skip
    cost = metered(model, batch_size, "sgd", "no", "cpu")
    assert plan.cost.peak == pytest.approx(cost.peak_bytes, rel=0.01)
    assert plan.cost.total == pytest.approx(cost.flops, rel=1e-6)


def test_a_split_within_a_budget_is_found_and_kept_to():
    plans = planner("resnet18", "overlap_dgl")
    budget = (plans.balanced(2).cost.peak + plans.smallest().cost.peak) // 2
    assert plans.within(budget).cost.peak <= budget


# Where it is refused


def test_where_units_are_not_whole_it_is_refused_in_a_sentence():
    sentence = "overlap_dgl trains a block's first unit from the block before as well"
    model, plans = localize(), planner("resnet20", "overlap_dgl")
    with pytest.raises(ValueError, match=sentence):
        place(model, Setting(4), 2)
    with pytest.raises(ValueError, match=f"{sentence}, and block parallelism"):
        plans.spread(2)
    with pytest.raises(ValueError, match=f"{sentence}, and sharding"):
        shard_model(model, None)


@pytest.mark.parametrize("flags", [["--fsdp"], ["--block-parallel", "2"]])
def test_training_refuses_it_too(flags, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    args = parse_args(["--cpu-threads", "1", *flags])
    accelerator = create_accelerator(args, Path("unused"))
    with pytest.raises(ValueError, match="overlap_dgl trains a block's first unit"):
        create_trainer(args, accelerator, localize(), 1, Places())
