"""Recomputation changes what is kept, and nothing of what is learnt."""

import pytest
import torch

import man_zoo
from man_zoo.meter import LiveBytes


def train(model: man_zoo.LocalModel, steps: int = 2) -> tuple[list, dict[str, torch.Tensor]]:
    """Losses, and weights with running statistics, after SGD on the same batches."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        images, target = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
        losses.append(model.local_step(images, target).losses)
        optimizer.step()
        optimizer.zero_grad()
    return losses, model.state_dict()


def twins(method: str, recompute: object, **keywords: object) -> list[man_zoo.LocalModel]:
    models = []
    for value in (None, recompute):
        torch.manual_seed(1)
        model = man_zoo.localize("resnet20", method, k=4, img_size=16, recompute=value, **keywords)
        models.append(model.train())
    return models


CASES = [
    ("dgl", {}),
    ("infopro", {}),
    ("predsim", {}),
    ("auglocal", {}),
    ("man_dgl", {}),
    ("man_dgl", {"form": "paper"}),
    ("manpp_dgl", {"learnable_units": 1}),
    ("man_dgl", {"drop_path_rate": 0.5}),
]


@pytest.mark.parametrize(("method", "keywords"), CASES)
@pytest.mark.parametrize("recompute", ["all", "layer2.0, auxiliaries.1"])
def test_results_are_identical(method, keywords, recompute):
    plain, recomputing = (train(model) for model in twins(method, recompute, **keywords))
    assert torch.equal(torch.stack(plain[0]), torch.stack(recomputing[0]))
    for name, tensor in plain[1].items():
        assert torch.equal(tensor, recomputing[1][name]), name


def test_end_to_end_recomputes_as_well():
    torch.manual_seed(1)
    plain = man_zoo.localize("resnet20", "e2e", img_size=16).train()
    recomputing = man_zoo.localize("resnet20", "e2e", img_size=16, recompute="all").train()
    recomputing.load_state_dict(plain.state_dict())
    (losses, weights), (others, other_weights) = train(plain), train(recomputing)
    assert torch.equal(torch.stack(losses), torch.stack(others))
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


@pytest.mark.slow
def test_compiled_blocks_recompute_as_if_they_kept_everything():
    modes = "selective layer1.0=stepwise layer2.0=all layer3.0=expansions auxiliaries=sparing"
    plain, recomputing = twins("man_dgl", modes)
    for block in recomputing.blocks:
        block.compile(backend="aot_eager", dynamic=False)
    (losses, weights), (others, other_weights) = train(plain), train(recomputing)
    assert torch.equal(torch.stack(losses), torch.stack(others))
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def activations(model: man_zoo.LocalModel) -> int:
    """Peak bytes of a step beyond the weights."""
    images, target = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    with LiveBytes() as live:
        live.track(model, images, target)
        before = live.current
        model.local_step(images, target, step=lambda j: model.blocks[j].zero_grad())
    return live.peak - before


@pytest.mark.parametrize("form", ["release", "paper"])
def test_every_part_that_is_recomputed_takes_less_memory(form):
    peaks = {
        value: activations(
            man_zoo.localize("resnet20", "man_dgl", k=4, form=form, recompute=value).train()
        )
        for value in (None, "units", "auxiliaries", "all")
    }
    assert peaks["units"] < 0.95 * peaks[None]
    assert peaks["auxiliaries"] < 0.95 * peaks[None]
    assert peaks["all"] < 0.9 * min(peaks["units"], peaks["auxiliaries"])


def momentum_peak(form: str) -> tuple[int, int]:
    """Peak bytes of a recomputed momentum unit, forward and backward, and those of its output."""
    model = man_zoo.localize("resnet20", "man_dgl", k=4, form=form, recompute="auxiliaries").train()
    unit, h = model.auxiliaries[0].momentum, torch.randn(16, 16, 32, 32, requires_grad=True)
    with LiveBytes() as live:
        live.track(unit, h)
        before = live.current
        unit(h).sum().backward()
    return live.peak - before, h.untyped_storage().nbytes()


def test_the_branches_of_the_release_form_are_never_alive_together():
    (release, size), (paper, _) = momentum_peak("release"), momentum_peak("paper")
    assert paper > 4 * size
    assert release < paper + 2.1 * size


@pytest.mark.parametrize("wrong", ["layer9.0", "auxiliaries.7", "unit"])
def test_an_unknown_part_is_one_sentence(wrong):
    with pytest.raises(ValueError, match=f"Unknown recompute '{wrong}'.*The nearest is"):
        man_zoo.localize("resnet20", "man_dgl", k=4, recompute=wrong)
