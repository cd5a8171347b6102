"""MAN's momentum unit: its two forms, MAN++, the EMA and its order, the ablations."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import man_zoo
from man_zoo.auxiliary import MomentumSettings, MomentumUnit

TINY_VIT = {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 10}


def resnet(method: str = "man_dgl", k: int = 4, **keywords) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    return man_zoo.localize("resnet20", method, k, **keywords).train()


def vit(method: str, k: int = 2, **keywords) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    return man_zoo.localize("vit_tiny_patch16_224", method, k, **TINY_VIT, **keywords).train()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 32, 32), torch.arange(8)


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_same(a: list[Tensor], b: list[Tensor], **tolerance) -> None:
    torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} | tolerance))


def shake(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


# Forms --------------------------------------------------------------------------------------------


def test_the_release_form_adds_a_learnable_copy_and_an_ema_copy() -> None:
    unit = resnet(form="release").auxiliaries[0].momentum.eval()
    h = torch.randn(2, 16, 32, 32)
    torch.testing.assert_close(unit(h), unit.bias(h) + unit.ema(h))
    assert all(p.requires_grad for p in unit.bias.parameters())
    assert not any(p.requires_grad for p in unit.ema.parameters())


def test_the_release_form_learns_from_fresh_weights() -> None:
    model = resnet(form="release")
    momentum, source = model.auxiliaries[0].momentum, model.links[0].source
    assert_same(values(momentum.ema), values(source))
    assert not torch.equal(momentum.bias[0].conv1.weight, source[0].conv1.weight)


def test_man_is_in_paper_form_and_manpp_in_release_form_unless_told_otherwise() -> None:
    assert resnet().spec.momentum == resnet(form="paper").spec.momentum
    assert resnet("manpp_dgl").spec.momentum == resnet("manpp_dgl", form="release").spec.momentum


def test_the_paper_form_adds_one_bias_a_channel() -> None:
    unit = resnet(form="paper").auxiliaries[0].momentum.eval()
    h = torch.randn(2, 16, 32, 32)
    assert unit.bias.shape == (16,)
    assert not unit.bias.any()
    nn.init.normal_(unit.bias)
    torch.testing.assert_close(unit(h), unit.ema(h) + unit.bias.view(1, 16, 1, 1))
    assert all(p.requires_grad for p in unit.parameters())


def test_the_bias_has_the_channels_of_the_stage_that_the_copy_enters() -> None:
    model = resnet(form="paper", cuts="layer1.2 layer2.0 layer3.0")
    assert [len(auxiliary.momentum.bias) for auxiliary in model.auxiliaries] == [32, 32, 64]


def test_the_bias_is_added_to_every_token() -> None:
    unit = vit("man_dgl", form="paper").auxiliaries[0].momentum.eval()
    h = torch.randn(2, 5, 24)
    nn.init.normal_(unit.bias)
    torch.testing.assert_close(unit(h), unit.ema(h) + unit.bias)


def test_man_plus_plus_weighs_the_branches_by_a_learnable_scale() -> None:
    unit = resnet("manpp_dgl").auxiliaries[0].momentum.eval()
    h = torch.randn(2, 16, 32, 32)
    assert unit.scale == 1
    assert unit.scale.requires_grad
    nn.init.constant_(unit.scale, 0.7)
    torch.testing.assert_close(unit(h), 0.7 * unit.bias(h) + 1.3 * unit.ema(h))


def test_weights_are_loaded_that_were_saved_when_the_scale_had_no_dimension() -> None:
    model = resnet("manpp_dgl")
    saved = {
        name: torch.tensor(0.7) if name.endswith(".scale") else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(saved)
    assert torch.equal(model.auxiliaries[0].momentum.scale, torch.tensor([0.7]))


def test_man_plus_plus_on_a_vit_adds_one_learnable_block_and_a_linear_on_the_class_token() -> None:
    auxiliary = vit("manpp_dgl").auxiliaries[0]
    assert len(auxiliary.momentum.learnable) == 1
    assert [type(layer) for layer in auxiliary.head.classifier] == [nn.LayerNorm, nn.Linear]
    tokens = torch.randn(2, 5, 24)
    other_patches = torch.cat([tokens[:, :1], torch.randn(2, 4, 24)], 1)
    assert torch.equal(auxiliary.head.classify(tokens), auxiliary.head.classify(other_patches))


# The EMA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [0.0, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("form", ["release", "paper"])
def test_the_ema_is_m_of_the_copy_and_the_rest_of_the_source(m: float, form: str) -> None:
    link = resnet(form=form, momentum=m).links[0]
    shake(link.source)
    copies, sources = values(link.target.ema), values(link.source)
    link.update()
    wanted = [m * copied + (1 - m) * source for copied, source in zip(copies, sources, strict=True)]
    assert_same(values(link.target.ema), wanted, rtol=1e-6, atol=1e-7)
    assert_same(values(link.source), sources)


def test_the_ema_moves_no_buffer() -> None:
    link = resnet(momentum=0.0).links[0]
    for buffer in link.source.buffers():
        buffer += 1
    before = [buffer.clone() for buffer in link.target.ema.buffers()]
    link.update()
    assert_same(list(link.target.ema.buffers()), before)


def test_the_copies_take_their_statistics_from_their_own_forward_passes() -> None:
    model = resnet()
    model.local_step(*batch())
    copied = model.auxiliaries[0].momentum.ema[0].bn1
    own = model.links[0].source[0].bn1
    assert copied.num_batches_tracked == own.num_batches_tracked == 1


def test_every_block_but_the_last_follows_the_first_unit_of_the_next() -> None:
    model = resnet(cuts="layer1.0 layer2.0 layer3.1")
    backbone = model.backbone
    wanted = [backbone.layer1[1], backbone.layer2[1], backbone.layer3[2]]
    assert all(link.source[0] is unit for link, unit in zip(model.links, wanted, strict=True))


def test_the_copy_follows_the_next_block_from_before_its_own_update() -> None:
    model = resnet(momentum=0.0)
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.5) for block in model.blocks]
    initial = values(model.links[0].source)
    model.local_step(*batch(), step=lambda j: optimizers[j].step())
    assert_same(values(model.auxiliaries[0].momentum.ema), initial)
    moved = values(model.links[0].source)
    assert not any(torch.equal(a, b) for a, b in zip(moved, initial, strict=True))


def test_the_copy_follows_after_its_own_gradient_step() -> None:
    model = resnet(form="paper", momentum=0.9)
    copied, source = model.auxiliaries[0].momentum.ema, values(model.links[0].source)
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.5) for block in model.blocks]
    stepped = []

    def step(j: int) -> None:
        optimizers[j].step()
        if j == 0:
            stepped.extend(values(copied))

    model.local_step(*batch(), step=step)
    wanted = [0.9 * gamma + 0.1 * theta for gamma, theta in zip(stepped, source, strict=True)]
    assert_same(values(copied), wanted, rtol=1e-6, atol=1e-7)


def test_the_copy_rests_while_gradients_accumulate() -> None:
    model = resnet(momentum=0.0)
    shake(model.links[0].source)
    before = values(model.auxiliaries[0].momentum.ema)
    model.local_step(*batch(), update_momentum=False)
    assert_same(values(model.auxiliaries[0].momentum.ema), before)


def test_gradient_flows_through_the_frozen_copy_and_not_into_it() -> None:
    unit = resnet(form="release", bias=False).auxiliaries[0].momentum
    h = torch.randn(2, 16, 32, 32, requires_grad=True)
    unit(h).square().sum().backward()
    assert h.grad.any()
    assert all(p.grad is None for p in unit.ema.parameters())


def test_in_the_paper_form_copy_and_bias_learn_from_the_local_loss() -> None:
    model = resnet(form="paper")
    model.local_step(*batch())
    momentum = model.auxiliaries[0].momentum
    assert all(p.grad is not None for p in momentum.parameters())
    assert momentum.bias.grad.any()


# Half precision -----------------------------------------------------------------------------------

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALF
@pytest.mark.parametrize("form", ["release", "paper"])
def test_the_copy_follows_a_source_in_half_precision(form: str, dtype: torch.dtype) -> None:
    link = resnet(form=form).to(dtype).links[0]
    shake(link.source)
    copies, sources = values(link.target.ema), values(link.source)
    for _ in range(200):
        link.update()
    m = 0.995**200
    wanted = [m * a.float() + (1 - m) * b.float() for a, b in zip(copies, sources, strict=True)]
    assert_same(values(link.target.ema), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["release", "paper"])
@pytest.mark.parametrize("made", [True, False])
def test_a_model_trains_in_half_precision(made: bool, form: str) -> None:
    keywords = {"dtype": torch.bfloat16} if made else {}
    model = resnet(form=form, **keywords).to(torch.bfloat16)
    unit = model.auxiliaries[0].momentum
    assert {p.dtype for p in unit.ema.parameters()} == {torch.float32}
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert unit(torch.randn(2, 16, 32, 32).bfloat16()).dtype == torch.bfloat16
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.1) for block in model.blocks]
    before = values(unit.ema)
    images, target = batch()
    for _ in range(2):
        out = model.local_step(images.bfloat16(), target, step=lambda j: optimizers[j].step())
    assert out.losses.isfinite().all()
    assert not any(torch.equal(a, b) for a, b in zip(before, values(unit.ema), strict=True))


def test_a_copy_in_half_precision_computes_what_the_source_does() -> None:
    for model in (resnet(cuts="layer1.2 layer2.2 layer3.1"), vit("man_dgl")):
        model.to(torch.bfloat16).eval()
        h = torch.randn(2, 16, 32, 32) if len(model.blocks) == 4 else torch.randn(2, 5, 24)
        link = model.links[0]
        ours, theirs = link.target.ema(h.bfloat16()), link.source(h.bfloat16())
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_training_in_half_precision_resumes_exactly() -> None:
    def train(model: man_zoo.LocalModel) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        torch.manual_seed(1)
        for _ in range(2):
            losses = model.local_step(batch()[0].bfloat16(), batch()[1]).losses
            optimizer.step()
            optimizer.zero_grad()
        return losses

    model = resnet().to(torch.bfloat16)
    train(model)
    other = resnet().to(torch.bfloat16)
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    twin = copy.deepcopy(model)
    losses = train(model)
    assert torch.equal(train(other), losses)
    assert torch.equal(train(twin), losses)


# Ablations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["release", "paper"])
def test_without_bias_only_the_ema_copy_is_there(form: str) -> None:
    model = resnet(form=form, bias=False)
    unit = model.auxiliaries[0].momentum.eval()
    h = torch.randn(2, 16, 32, 32)
    torch.testing.assert_close(unit(h), unit.ema(h))
    assert {name.split(".")[0] for name, _ in unit.named_parameters()} == {"ema"}
    assert len(model.links) == 3


@pytest.mark.parametrize("form", ["release", "paper"])
def test_without_ema_a_fresh_unit_learns_and_follows_nothing(form: str) -> None:
    model = resnet(form=form, ema=False)
    unit = model.auxiliaries[0].momentum
    fresh = unit.bias if form == "release" else unit.ema
    assert not model.links
    assert all(p.requires_grad for p in unit.parameters())
    assert not torch.equal(fresh[0].conv1.weight, model.backbone.layer1[2].conv1.weight)
    model.local_step(*batch())
    assert all(p.grad is not None for p in unit.parameters())


def test_deeper_transfer_copies_several_units() -> None:
    model = resnet(k=2, cuts="layer1.2", momentum_units=2, momentum=0.0, form="paper")
    momentum, link = model.auxiliaries[0].momentum, model.links[0]
    assert [*link.source] == [model.backbone.layer2[0], model.backbone.layer2[1]]
    shake(link.source)
    link.update()
    assert_same(values(momentum.ema), values(link.source))
    assert momentum(torch.randn(2, 16, 32, 32)).shape == (2, 32, 16, 16)


def test_learnable_units_follow_the_copies() -> None:
    model = resnet(learnable_units=2)
    unit = model.auxiliaries[0].momentum
    model.local_step(*batch())
    assert len(unit.learnable) == 2
    assert all(p.grad is not None for p in unit.learnable.parameters())


def test_learnable_units_keep_the_channels_of_a_copy_that_changes_stage() -> None:
    model = resnet(cuts="layer1.2 layer2.2 layer3.1", learnable_units=1)
    assert torch.isfinite(model.local_step(*batch()).losses).all()


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"form": "papr"}, "Unknown form 'papr'; expected release, paper. The nearest is 'paper'."),
        ({"momentum": 1.5}, "momentum is from 0 (direct copy) to 1 (none); got 1.5."),
        ({"momentum": -0.1}, "momentum is from 0 (direct copy) to 1 (none); got -0.1."),
        ({"scale": True, "form": "paper"}, "use form='release' with bias and ema."),
        ({"scale": True, "bias": False}, "use form='release' with bias and ema."),
        ({"scale": True, "ema": False}, "use form='release' with bias and ema."),
        ({"bias": False, "ema": False}, "without bias and without ema is nothing; keep one."),
        (
            {"momentum_units": 0},
            "momentum_units is at least 1 and learnable_units at least 0; got 0 and 0.",
        ),
    ],
)
def test_settings_that_contradict_are_refused_in_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        MomentumSettings(**settings)


def test_transfer_deeper_than_the_next_block_is_refused_in_a_sentence() -> None:
    sentence = "momentum_units=9, but the block after layer1.2 has 6 unit(s); use momentum_units=6"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        resnet(k=2, cuts="layer1.2", momentum_units=9)


def test_man_plus_plus_in_the_paper_form_is_refused() -> None:
    with pytest.raises(ValueError, match="use form='release'"):
        resnet("manpp_dgl", form="paper")


def test_base_methods_have_no_momentum_unit() -> None:
    model = resnet("dgl")
    assert not any(isinstance(module, MomentumUnit) for module in model.modules())
    assert not model.links
