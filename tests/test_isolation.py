"""No gradient crosses a cut, and a block's graph is gone before the next block runs."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

import man_zoo
from man_zoo.meter import LiveBytes, StepCost, backprop_cost, fake, measure

METHODS = [
    *("dgl", "infopro", "predsim", "auglocal"),
    *("man_dgl", "manpp_infopro", "man_predsim", "man_auglocal"),
]


def model_and_batch(
    method: str = "man_dgl", **keywords
) -> tuple[man_zoo.LocalModel, Tensor, Tensor]:
    torch.manual_seed(0)
    model = man_zoo.localize("resnet20", method, 4, **keywords).train()
    return model, torch.randn(8, 3, 32, 32), torch.arange(8)


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def assert_equal(a: list[Tensor | None], b: list[Tensor | None]) -> None:
    for left, right in zip(a, b, strict=True):
        assert left is right is None or torch.equal(left, right)


def assert_learn_without_the_last(
    model: man_zoo.LocalModel, images: Tensor, target: Tensor
) -> None:
    """All blocks but the last learn the same whether or not it runs."""
    alone, last = copy.deepcopy(model), len(model.blocks) - 1
    torch.manual_seed(0)
    model.local_step(images, target)
    torch.manual_seed(0)
    man_zoo.local_step(alone.blocks[:last], [], images, target, restored=alone.restore(images))
    for whole, part in zip(model.blocks[:last], alone.blocks[:last], strict=True):
        assert_equal(gradients(whole), gradients(part))
    assert all(p.grad is None for p in alone.blocks[last].parameters())


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_block_learns_the_same_whether_or_not_later_blocks_run(method: str) -> None:
    assert_learn_without_the_last(*model_and_batch(method))


def test_a_later_loss_leaves_earlier_gradients_as_they_are() -> None:
    model, images, target = model_and_batch()
    features = images
    for j, block in enumerate(model.blocks):
        before = [gradients(earlier) for earlier in model.blocks[:j]]
        features, loss, _ = block(features, target)
        (1000 * loss).backward()
        for earlier, wanted in zip(model.blocks[:j], before, strict=True):
            assert_equal(gradients(earlier), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_every_learning_parameter_gets_its_gradient_from_its_own_block(method: str) -> None:
    model, images, target = model_and_batch(method)
    features, restored = images, model.restore(images)
    for block in model.blocks:
        features, loss, _ = block(features, target, restored)
        own = [p for p in block.parameters() if p.requires_grad]
        others = [p for p in model.parameters() if all(p is not q for q in own)]
        model.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in own)
        assert all(p.grad is None for p in others)


def test_what_leaves_a_block_carries_no_graph() -> None:
    model, images, target = model_and_batch()
    images.requires_grad_()
    features, loss, logits = model.blocks[0](images, target)
    loss.backward()
    assert images.grad is None
    assert not features.requires_grad
    assert not logits.requires_grad


def test_blocks_share_no_parameter_and_hold_all_of_them() -> None:
    model, *_ = model_and_batch()
    of_blocks = [id(p) for block in model.blocks for p in block.parameters()]
    assert len(of_blocks) == len(set(of_blocks))
    assert set(of_blocks) == {id(p) for p in model.parameters()}


def test_one_blocks_gradients_are_alive_at_a_time() -> None:
    model = man_zoo.localize("resnet20", "man_dgl", k=4).train()
    alive = []

    def step(j: int) -> None:
        blocks = [list(block.parameters()) for block in model.blocks]
        alive.append([any(p.grad is not None for p in block) for block in blocks])
        model.blocks[j].zero_grad()

    model.local_step(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]), step=step)
    assert alive == [[i == j for i in range(4)] for j in range(4)]


def test_the_next_block_sees_features_from_before_the_update() -> None:
    model, images, target = model_and_batch("dgl")
    still = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.1) for block in model.blocks]
    moving = model.local_step(images, target, step=lambda j: optimizers[j].step())
    assert torch.equal(moving.losses, still.local_step(images, target).losses)
    assert torch.equal(moving.logits, still.local_step(images, target).logits)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_a_block_finished_late_is_the_same_to_the_bit(form: str) -> None:
    model, images, target = model_and_batch("man_dgl", form=form)
    now, order = three_steps(copy.deepcopy(model), images, target, late=False)
    assert order[:5] == ["backward 0", "step 0", "copy 0", "backward 1", "step 1"]
    late, order = three_steps(model, images, target, late=True)
    assert order[:6] == ["backward 0", "backward 1", "step 0", "copy 0", "backward 2", "step 1"]
    assert order[-4:] == ["backward 3", "step 2", "copy 2", "step 3"]
    assert_equal(now, late)


def three_steps(
    model: man_zoo.LocalModel, images: Tensor, target: Tensor, late: bool
) -> tuple[list[Tensor], list[str]]:
    """Losses, logits and parameters after three steps, and what was done in which order."""
    order: list[str] = []
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.1) for block in model.blocks]
    for j, link in enumerate(model.links):
        link.update = _told(order, f"copy {j}", link.update)
    backwards = [_told(order, f"backward {j}", Tensor.backward) for j in range(4)]

    def step(j: int) -> None:
        order.append(f"step {j}")
        optimizers[j].step()
        optimizers[j].zero_grad()

    for _ in range(3):
        output = model.local_step(images, target, backward=backwards, step=step, late=late)
    return [output.losses, output.logits, *model.parameters()], order


def _told(order: list[str], name: str, call: Callable[..., object]) -> Callable[..., None]:
    def told(*args: object) -> None:
        order.append(name)
        call(*args)

    return told


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "overlap_dgl"])
def test_a_graph_is_gone_when_its_block_has_stepped(method: str) -> None:
    model, images, target = model_and_batch(method)
    model.local_step(images, target)
    at_step = []
    with LiveBytes() as live:
        live.track(model, images, target)
        resident = live.current

        def step(j: int) -> None:
            at_step.append(live.current - resident)

        # Backward frees nothing here, so that only dropping the graph does.
        model.local_step(
            images, target, step=step, backward=partial(Tensor.backward, retain_graph=True)
        )
    features = 8 * 16 * 32 * 32 * 4
    restored = images.nbytes if model.restore(images) is not None else 0
    # Two maps, the block's input and output, and some scalars and logits.
    assert max(at_step) <= 2 * features + restored + 4096


def local_cost(name: str, **keywords) -> StepCost:
    """Batch 1024 of 32 px, an SGD with momentum for every block, gradients dropped at once."""
    with fake(timm.create_model(name, **keywords)) as model:
        model.train()
        images, target = torch.empty(1024, 3, 32, 32), torch.empty(1024, dtype=torch.long)
        optimizers = [
            torch.optim.SGD([p for p in block.parameters() if p.requires_grad], 0.1, momentum=0.9)
            for block in model.blocks
        ]

        def step(j: int) -> None:
            optimizers[j].step()
            optimizers[j].zero_grad()

        return measure(
            lambda: model.local_step(images, target, step=step),
            resident=[model, images, target, *optimizers],
        )


@pytest.fixture(scope="module")
def end_to_end() -> StepCost:
    return backprop_cost(timm.create_model("resnet32"), (1024, 3, 32, 32))


@pytest.fixture(scope="module")
def release() -> StepCost:
    return local_cost("resnet32_man_dgl_k16", form="release")


def test_resnet32_in_16_blocks_takes_half_the_memory(
    release: StepCost, end_to_end: StepCost
) -> None:
    assert release.peak_gib <= 1.24
    assert release.peak_bytes < 0.55 * end_to_end.peak_bytes


def test_the_paper_form_costs_less_than_the_release_form(
    release: StepCost, end_to_end: StepCost
) -> None:
    paper = local_cost("resnet32_man_dgl_k16", form="paper")
    assert round(release.flops / end_to_end.flops, 2) <= 3.15
    assert paper.flops < 0.85 * release.flops
    assert paper.peak_bytes < 0.9 * release.peak_bytes


@pytest.mark.slow
def test_infopro_in_16_blocks_costs_no_more_than_published(end_to_end: StepCost) -> None:
    cost = local_cost("resnet32_man_infopro_k16")
    assert round(cost.flops / end_to_end.flops, 2) <= 4.29
    assert cost.peak_bytes < 0.6 * end_to_end.peak_bytes


def test_the_end_to_end_zoo_model_costs_what_backpropagation_does(end_to_end: StepCost) -> None:
    cost = local_cost("resnet32_e2e_k1")
    assert cost.flops == end_to_end.flops
    assert cost.peak_bytes == pytest.approx(end_to_end.peak_bytes, rel=0.01)


@pytest.mark.slow
def test_resnet110_in_55_blocks_takes_a_fifth_of_the_memory() -> None:
    cost = local_cost("resnet110_man_dgl_k55")
    assert cost.peak_gib <= 1.48
    assert cost.peak_gib < 0.25 * local_cost("resnet110_e2e_k1").peak_gib
