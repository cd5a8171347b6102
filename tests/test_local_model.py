"""A LocalModel is its backbone to everyone but the training step."""

import copy
import gc
import io
import math
import pickle
import weakref

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor

import man_zoo

VIT = "vit_tiny_patch16_224"
TINY_VIT = {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 10}
BACKBONES = {"resnet20": {}, VIT: TINY_VIT, "resnet50": {"num_classes": 10}}
BEIT, SWIN_V2 = "beit_base_patch16_224", "swinv2_tiny_window8_256"
TINY_SWIN = {"img_size": 32, "depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2)}


def build(
    backbone: str = "resnet20", method: str = "man_dgl", k: int = 3, **keywords
) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    return man_zoo.localize(backbone, method, k, **(BACKBONES.get(backbone, {}) | keywords))


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


@pytest.mark.parametrize("method", ["man_infopro", "predsim"])
def test_auxiliaries_that_are_built_for_one_size_say_so(method: str) -> None:
    model = build(method=method).train()
    sentence = f"^{method} is built for 32x32 images and got 48x48; .*img_size=.*set_input_size"
    with pytest.raises(ValueError, match=sentence):
        model.local_step(*batch(48))
    model.set_input_size(48)
    assert torch.isfinite(model.local_step(*batch(48)).losses).all()


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


def test_distilled_training_is_refused_in_a_sentence() -> None:
    model = build("deit_tiny_distilled_patch16_224", "dgl", k=2, **TINY_VIT).train()
    model.set_distilled_training(True)
    with pytest.raises(ValueError, match=r"^The head gives 2 .*set_distilled_training\(False\)"):
        model.local_step(*batch())
    model.set_distilled_training(False)
    assert torch.isfinite(model.local_step(*batch()).losses).all()


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


@pytest.mark.parametrize("training", [True, False])
def test_new_auxiliaries_are_in_the_models_mode(training: bool) -> None:
    model = build().train(training)
    model.reset_classifier(7)
    assert {module.training for module in model.auxiliaries.modules()} == {training}


def test_reset_classifier_without_auxiliaries_builds_none() -> None:
    model = build(auxiliaries=False)
    model.reset_classifier(7)
    assert not model.auxiliaries
    assert model(batch()[0]).shape == (4, 7)


def test_blocks_are_named_after_their_units() -> None:
    model = build(cuts="layer1.0 layer3.1")
    names = [model.block_name(j) for j in range(3)]
    assert names == ["stem to layer1.0", "layer1.1 to layer3.1", "layer3.2"]


@pytest.mark.parametrize(
    ("backbone", "keywords", "options"),
    [
        (VIT, {"head": "wide"}, {}),
        (VIT, {"head": "wide"}, {"patch_size": 8}),
        ("vit_small_patch16_dinov3", TINY_VIT, {}),
        ("swin_tiny_patch4_window7_224", TINY_SWIN | {"window_size": 4}, {"window_size": 4}),
        ("resnet20", {"method": "man_infopro"}, {}),
    ],
)
def test_set_input_size_reaches_the_auxiliaries(backbone, keywords, options) -> None:
    method = keywords.pop("method", "man_dgl")
    model = build(backbone, method, k=2, **keywords).train()
    model.set_input_size((64, 96), **options)
    assert model.input_size == (3, 64, 96)
    images, target = torch.randn(2, 3, 64, 96), torch.arange(2)
    assert torch.isfinite(model.local_step(images, target).losses).all()
    assert {id(p) for b in model.blocks for p in b.parameters()} == {
        id(p) for p in model.parameters()
    }


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


@pytest.mark.parametrize(
    ("backbone", "keywords", "times"),
    [
        ("resnet20", {}, 2),
        # timm's own: the bottlenecks within a unit.
        ("densenet121", {"growth_rate": 4, "block_config": (2, 2, 2), "num_classes": 10}, 1.5),
    ],
)
def test_grad_checkpointing_recomputes_in_a_local_step_too(backbone, keywords, times) -> None:
    model = build(backbone, "dgl", **keywords).train()
    other, calls = copy.deepcopy(model), []
    layers = [
        layer for layer in other.backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)
    ]
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))

    def runs() -> float:
        calls.clear()
        other.local_step(*batch())
        return len(calls) / len(layers)

    other.set_grad_checkpointing()
    assert runs() == times
    model.local_step(*batch())
    for (name, plain), saved in zip(model.named_parameters(), other.parameters(), strict=True):
        assert plain.grad is None or torch.equal(plain.grad, saved.grad), name
    other.set_grad_checkpointing(False)
    assert runs() == 1


def test_grad_checkpointing_stays_with_a_new_head() -> None:
    model = build("resnet20", recompute="layer1.0")
    model.set_grad_checkpointing()
    model.reset_classifier(7)
    assert all(len(block.recompute) == len(block.units) for block in model.blocks)
    model.set_grad_checkpointing(False)
    assert sum(len(block.recompute) for block in model.blocks) == 1


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    assert not hasattr(build(), "no_such_thing")


@pytest.mark.parametrize("backbone", ["resnet20", VIT, "cait_xxs24_224"])
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


@pytest.mark.parametrize(
    ("backbone", "method", "keywords"),
    [
        (BEIT, "man_dgl", TINY_VIT),
        (BEIT, "manpp_dgl", TINY_VIT),
        (BEIT, "auglocal", TINY_VIT | {"aux_depth": 1}),
        (SWIN_V2, "man_dgl", TINY_SWIN | {"window_size": 4, "cuts": "layers.0.blocks.1"}),
    ],
)
def test_copies_of_undecayed_parameters_are_undecayed(backbone, method, keywords) -> None:
    model = build(backbone, method, k=2, **keywords)
    for each in (model, copy.deepcopy(model)):
        wanted = {
            name: id(p)
            for name, p in each.named_parameters()
            if p.requires_grad and any(word in name for word in NEVER_DECAYED)
        }
        assert any(name.startswith("auxiliaries.") for name in wanted)
        wanted = {id(p) for p in each.parameters() if p.ndim > 1} & set(wanted.values())
        assert spared(each) == wanted
        assert set().union(*map(spared, each.blocks)) == wanted


NEVER_DECAYED = ("cls_token", "pos_embed", "relative_position_bias_table", "cpb_mlp", "logit_scale")


def spared(module: torch.nn.Module) -> set[int]:
    """The parameters of more than one dimension that timm's optimizer does not decay."""
    groups = create_optimizer_v2(module, opt="adamw", lr=1.0, weight_decay=0.1).param_groups
    without = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    return {id(p) for p in without if p.ndim > 1}


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


@pytest.mark.parametrize("backbone", ["resnet20", VIT])
@pytest.mark.parametrize(
    ("method", "keywords"),
    [
        *((base, {}) for base in ("dgl", "infopro", "predsim")),
        ("dgl", {"head": "narrow"}),
        ("dgl", {"head": "wide"}),
        ("dgl", {"head": "conv"}),
        ("dgl", {"head": "strided", "width": 8}),
        ("dgl", {"head": "separable"}),
        ("infopro", {"local_loss": "contrast"}),
        ("auglocal", {"aux_depth": 1}),
        ("man_dgl", {"form": "release"}),
        ("man_dgl", {"form": "paper", "head": "wide"}),
        ("manpp_predsim", {"learnable_units": 1}),
    ],
)
def test_copies_of_a_model_and_pickled_blocks_hold_nothing_of_the_original(
    backbone: str, method: str, keywords: dict
) -> None:
    model = build(backbone, method, **keywords).train()
    images, target = batch()
    losses = copy.deepcopy(model).local_step(images, target).losses
    twin = copy.deepcopy(model)
    blocks = [pickle.loads(pickle.dumps(block)) for block in model.blocks]
    restored, features = model.restore(images), images
    original = [weakref.ref(model.backbone), *map(weakref.ref, model.blocks)]
    # Stem and head are stretches of the backbone's own code; blocks between them stand alone.
    assert all(map(stands_alone, model.blocks[1:-1]))
    del model
    gc.collect()
    assert all(ref() is None for ref in original)
    assert torch.equal(twin.local_step(images, target).losses, losses)
    for j, block in enumerate(blocks):
        features, loss, _ = block(features, target, restored)
        torch.testing.assert_close(loss, losses[j])


def stands_alone(block: torch.nn.Module) -> bool:
    """Whether no other parameters than its own are pickled with it."""
    found = set()

    class Pickler(pickle.Pickler):
        def reducer_override(self, thing: object) -> object:
            if isinstance(thing, torch.nn.Parameter):
                found.add(id(thing))
            return NotImplemented

    Pickler(io.BytesIO()).dump(block)
    return found == {id(p) for p in block.parameters()}


def test_a_criterion_with_weights_is_saved_once_and_moves_along(tmp_path) -> None:
    weights = torch.linspace(0.5, 2, 10)
    model = build(method="man_infopro", criterion=torch.nn.CrossEntropyLoss(weights)).train()
    same = build(method="man_infopro", criterion=torch.nn.CrossEntropyLoss()).train()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for j, block in enumerate(model.blocks):
        save_file(block.state_dict(), tmp_path / f"block{j}.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {name for name in saved if "criterion" in name} == {"criterion.weight"}
    model.load_state_dict(saved)
    images, target = batch()
    twin = copy.deepcopy(model).double()
    losses = twin.local_step(images.double(), target).losses
    torch.testing.assert_close(losses.float(), model.local_step(images, target).losses)
    assert not torch.equal(losses.float(), same.local_step(images, target).losses)


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
