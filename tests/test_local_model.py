"""A LocalModel is its backbone to everyone but the training step."""

import copy
import io
import math

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor

import man_zoo

VIT = "vit_tiny_patch16_224"
TINY_VIT = {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 10}
BACKBONES = {"resnet20": {}, VIT: TINY_VIT, "resnet50": {"num_classes": 10}}


def build(
    backbone: str = "resnet20", method: str = "man_dgl", k: int = 3, **keywords
) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    return man_zoo.localize(backbone, method, k, **(BACKBONES[backbone] | keywords))


def batch(size: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, channels, size, size, generator=generator), torch.arange(4)


def train(model: man_zoo.LocalModel, optimizer: torch.optim.Optimizer, steps: int = 2) -> Tensor:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(model.local_step(*batch()).losses)
        optimizer.step()
    return torch.stack(losses)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)


# The backbone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_trained_backbone_loads_strictly_into_timm_and_answers_alike(backbone: str) -> None:
    model = build(backbone)
    model.train()
    train(model, sgd(model), steps=1)
    plain = timm.create_model(backbone, **BACKBONES[backbone])
    plain.load_state_dict(model.backbone.state_dict(), strict=True)
    images, _ = batch()
    assert torch.equal(model.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_block_by_block_is_the_whole_network(backbone: str) -> None:
    model = build(backbone).eval()
    images, _ = batch()
    assert torch.equal(model.forward_exits(images)[-1], model(images))


def test_training_sees_the_images_through_the_backbone_in_training_mode() -> None:
    model = build(method="dgl").train()
    plain = copy.deepcopy(model.backbone)
    images, target = batch()
    assert torch.equal(model.local_step(images, target).logits, plain(images))
    assert torch.equal(model.backbone.bn1.running_mean, plain.bn1.running_mean)


def test_parameters_are_those_of_the_backbone_and_of_the_auxiliaries() -> None:
    model = build()
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "auxiliaries"}


@pytest.mark.parametrize("in_chans", [1, 5])
def test_images_may_have_any_number_of_channels(in_chans: int) -> None:
    model = build(method="man_infopro", in_chans=in_chans).train()
    images, target = batch(channels=in_chans)
    assert model.restore(images).shape == images.shape
    assert torch.isfinite(model.local_step(images, target).losses).all()


def test_images_may_have_another_size() -> None:
    for method in ("man_dgl", "infopro", "predsim"):
        model = build("resnet50", method, k=2, img_size=40).train()
        assert torch.isfinite(model.local_step(*batch(40)).losses).all()


# Auxiliaries --------------------------------------------------------------------------------------


@pytest.fixture
def without_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pretrained=True`` without its weights."""
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **kw: create(name, **kw)
    )


@pytest.mark.parametrize(
    ("pretrained", "auxiliaries", "built"),
    [
        (False, None, True),
        (True, None, False),
        (True, True, True),
        (False, False, False),
    ],
)
@pytest.mark.usefixtures("without_download")
def test_auxiliaries_are_built_unless_pretrained(
    pretrained: bool, auxiliaries: bool | None, built: bool
) -> None:
    model = build("resnet50", pretrained=pretrained, auxiliaries=auxiliaries)
    assert bool(len(model.auxiliaries)) is built
    assert bool(model.blocks) is built
    assert bool(model.links) is built


def test_without_auxiliaries_every_parameter_is_the_backbones() -> None:
    model = build(auxiliaries=False)
    assert all(name.startswith("backbone.") for name in model.state_dict())
    assert model(batch()[0]).shape == (4, 10)


@pytest.mark.parametrize("call", ["local_step", "forward_auxiliary"])
def test_without_auxiliaries_local_training_is_refused_in_a_sentence(call: str) -> None:
    model = build(auxiliaries=False)
    arguments = batch() if call == "local_step" else batch()[:1]
    with pytest.raises(RuntimeError, match="built without them; pass auxiliaries=True"):
        getattr(model, call)(*arguments)


@pytest.mark.parametrize("method", ["dgl", "man_infopro", "predsim", "auglocal"])
def test_every_auxiliary_is_an_early_exit(method: str) -> None:
    keywords = {"aux_depth": 1} if method == "auglocal" else {}
    model = build(method=method, **keywords).eval()
    exits = model.forward_auxiliary(batch()[0])
    assert [logits.shape for logits in exits] == 2 * [(4, 10)]


def test_an_early_exit_is_the_auxiliary_on_its_blocks_features() -> None:
    model = build().eval()
    images, _ = batch()
    h = model.blocks[0].units(images)
    auxiliary = model.auxiliaries[0]
    wanted = auxiliary.head.classify(auxiliary.momentum(h))
    assert torch.equal(model.forward_auxiliary(images)[0], wanted)


def test_reset_classifier_reaches_head_and_auxiliaries() -> None:
    model = build()
    model.reset_classifier(7)
    images, target = batch()
    assert model.num_classes == model.backbone.num_classes == 7
    assert [logits.shape[1] for logits in model.forward_exits(images)] == [7, 7, 7]
    assert model.local_step(images, target).logits.shape == (4, 7)
    assert {id(p) for b in model.blocks for p in b.parameters()} == {
        id(p) for p in model.parameters()
    }


def test_reset_classifier_without_auxiliaries_builds_none() -> None:
    model = build(auxiliaries=False)
    model.reset_classifier(7)
    assert not model.auxiliaries
    assert model(batch()[0]).shape == (4, 7)


def test_blocks_are_named_after_their_units() -> None:
    model = build(cuts="layer1.0 layer3.1")
    names = [model.block_name(j) for j in range(3)]
    assert names == ["stem to layer1.0", "layer1.1 to layer3.1", "layer3.2"]


# timm's model interface ---------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_timm_s_interface_is_the_backbones(backbone: str) -> None:
    model, images = build(backbone).eval(), batch()[0]
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (4, model.num_features)
    assert model.num_classes == 10
    assert model.get_classifier() is model.backbone.get_classifier()
    assert model.feature_info == model.backbone.feature_info
    assert model.pretrained_cfg["architecture"] == backbone
    final, intermediates = model.forward_intermediates(images)
    assert torch.equal(final, features)
    assert intermediates


@pytest.mark.parametrize("backbone", BACKBONES)
def test_grad_checkpointing_changes_no_gradient(backbone: str) -> None:
    model, images = build(backbone).train(), batch()[0]
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for each in (model, other):
        each(images).square().sum().backward()
    for plain, saved in zip(model.parameters(), other.parameters(), strict=True):
        assert (plain.grad is None) == (saved.grad is None)
        if plain.grad is not None:
            torch.testing.assert_close(plain.grad, saved.grad)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    assert not hasattr(build(), "no_such_thing")


@pytest.mark.parametrize("backbone", ["resnet20", VIT])
def test_timm_s_optimizer_decays_by_layer(backbone: str) -> None:
    model = build(backbone, auxiliaries=False)
    options = {"opt": "adamw", "lr": 1.0, "weight_decay": 0.1, "layer_decay": 0.5}
    ours = create_optimizer_v2(model, **options).param_groups
    backbones = create_optimizer_v2(model.backbone, **options).param_groups
    assert summary(ours) == summary(backbones)


def summary(groups: list[dict]) -> dict[int, tuple[float, float]]:
    return {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_timm_s_optimizer_spares_what_the_backbone_wants_without_decay() -> None:
    model = build(VIT)
    assert {"backbone.cls_token", "backbone.pos_embed"} <= model.no_weight_decay()
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.backbone.cls_token)] == 0
    assert decay[id(model.backbone.blocks[0].mlp.fc1.weight)] == 0.1


def test_a_blocks_optimizer_spares_the_same() -> None:
    block = build(VIT).blocks[0]
    groups = create_optimizer_v2(block, opt="adamw", lr=1.0, weight_decay=0.1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(block.units[0].pos_embed)] == 0
    assert len(decay) == len([p for p in block.parameters() if p.requires_grad])


# Copies and checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["man_dgl", "man_infopro"])
def test_a_deep_copy_trains_alike_and_apart(method: str) -> None:
    model = build(method=method).train()
    other = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = train(other, sgd(other))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(train(model, sgd(model)), losses)


def test_saved_and_loaded_training_goes_on_alike() -> None:
    model = build(form="paper").train()
    optimizer = sgd(model)
    train(model, optimizer)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    losses = train(model, optimizer)
    buffer.seek(0)
    saved = torch.load(buffer)
    torch.manual_seed(9)
    other = man_zoo.localize("resnet20", "man_dgl", 3, form="paper").train()
    other_optimizer = sgd(other)
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    assert torch.equal(train(other, other_optimizer), losses)


def test_timm_s_model_ema_follows() -> None:
    model = build().train()
    ema = ModelEmaV3(model, decay=0.5)
    before = model.backbone.conv1.weight.detach().clone()
    train(model, sgd(model), steps=1)
    ema.update(model)
    after = model.backbone.conv1.weight
    torch.testing.assert_close(ema.module.backbone.conv1.weight, (before + after) / 2)
    images, _ = batch()
    assert ema.module.eval()(images).shape == (4, 10)


def test_a_model_may_move_to_another_precision() -> None:
    model = build(method="man_infopro").double().train()
    images, target = batch()
    losses = model.local_step(images.double(), target).losses
    assert losses.dtype == torch.float64
    assert all(math.isfinite(loss) for loss in losses)
