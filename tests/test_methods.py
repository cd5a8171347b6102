"""Every base method, alone and under MAN and MAN++, against its definition."""

import dataclasses
import math

import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

import man_zoo
from man_zoo.auxiliary import Site
from man_zoo.auxiliary.auglocal import AugLocalHead
from man_zoo.auxiliary.infopro import InfoProHead, supervised_contrast
from man_zoo.auxiliary.predsim import similarity
from man_zoo.families import list_units
from man_zoo.tasks import Classification

BASES = ("dgl", "infopro", "predsim", "auglocal")
WRAPPERS = [("", {}), ("man_", {"form": "release"}), ("man_", {"form": "paper"}), ("manpp_", {})]
TINY_VIT = {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 10}


def build(backbone: str, method: str, **keywords) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    tiny = {"aux_depth": 1} if method.endswith("auglocal") else {}
    if backbone.startswith("vit"):
        tiny |= TINY_VIT
    return man_zoo.localize(backbone, method, **({"k": 3} | tiny | keywords)).train()


def resnet(method: str, **keywords) -> man_zoo.LocalModel:
    return build("resnet20", method, **keywords)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) // 2


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("wrapper", "keywords"), WRAPPERS)
@pytest.mark.parametrize("backbone", ["resnet20", "vit_tiny_patch16_224"])
def test_every_local_loss_falls_on_a_fixed_batch(
    backbone: str, wrapper: str, keywords: dict, base: str
) -> None:
    model = build(backbone, wrapper + base, drop_rate=0.0, **keywords)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    history = []
    for _ in range(5):
        out = model.local_step(*batch())
        optimizer.step()
        optimizer.zero_grad()
        history.append(out.losses)
    assert out.logits.shape == (8, 10)
    assert torch.isfinite(torch.stack(history)).all()
    assert (history[-1] < history[0]).all()


@pytest.mark.parametrize("method", ["dgl", "infopro", "predsim", "auglocal", "manpp_dgl"])
def test_soft_targets_of_one_class_are_that_class(method: str) -> None:
    images, target = batch()
    hard = resnet(method).local_step(images, target)
    soft = resnet(method).local_step(images, F.one_hot(target, 10).float())
    torch.testing.assert_close(soft.losses, hard.losses)


@pytest.mark.parametrize("base", BASES)
def test_mixed_targets_train(base: str) -> None:
    images, target = batch()
    one_hot = F.one_hot(target, 10).float()
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    model = resnet(base, criterion=SoftTargetCrossEntropy())
    assert torch.isfinite(model.local_step(images, mixed).losses).all()


def test_the_criterion_is_that_of_the_head_and_of_every_classifier() -> None:
    images, target = batch()
    plain, smooth = resnet("dgl"), resnet("dgl", criterion=LabelSmoothingCrossEntropy(0.2))
    logits = [*plain.forward_exits(images)]
    wanted = torch.stack([LabelSmoothingCrossEntropy(0.2)(x, target) for x in logits])
    torch.testing.assert_close(smooth.local_step(images, target).losses, wanted)


# InfoPro ------------------------------------------------------------------------------------------


def test_infopro_lambdas_go_linearly_from_first_to_last_block() -> None:
    model = resnet("infopro", k=5, lambda1=(5, 1), lambda2=(0, 1.5))
    heads = [auxiliary.head for auxiliary in model.auxiliaries]
    assert [head.lambda1 for head in heads] == pytest.approx([5, 5 - 4 / 3, 5 - 8 / 3, 1])
    assert [head.lambda2 for head in heads] == pytest.approx([0, 0.5, 1, 1.5])


def test_the_lambdas_of_a_single_auxiliary_are_the_first() -> None:
    head = resnet("infopro", k=2, lambda1=(5, 1)).auxiliaries[0].head
    assert head.lambda1 == 5


@pytest.mark.parametrize(
    ("backbone", "method", "k", "lambda1", "lambda2"),
    [
        ("resnet32", "infopro", 16, (5, 0.2), (0.05, 0.5)),
        ("resnet110", "infopro", 55, (5, 0.5), (0, 1)),
        ("resnet32", "man_infopro", 16, (5, 0), (0.5, 0)),
        ("resnet110", "man_infopro", 32, (5, 0), (0.5, 0)),
        ("resnet101", "infopro", 4, (5, 5), (0.75, 0.75)),
        ("resnet152", "man_infopro", 2, (5, 5), (1, 1)),
        ("resnet32", "overlap_infopro", 16, (5, 0), (0.5, 0)),
        ("resnet152", "overlap_infopro", 2, (5, 5), (1, 1)),
    ],
)
def test_published_lambdas_are_the_default(backbone, method, k, lambda1, lambda2) -> None:
    settings = man_zoo.spec.make_spec(backbone, method, k, {}).head_settings
    assert settings["lambda1"] == lambda1
    assert settings["lambda2"] == lambda2


@pytest.mark.parametrize(("backbone", "k"), [("resnet32", 16), ("resnet110", 55), ("resnet101", 4)])
def test_lambdas_published_for_others_are_not_manpps(backbone, k) -> None:
    assert man_zoo.spec.make_spec(backbone, "manpp_infopro", k, {}).head_settings == {}


def test_infopro_weighs_reconstruction_and_task_loss() -> None:
    model = resnet("infopro", lambda1=(2, 2), lambda2=(3, 3))
    images, target = batch()
    head, h = model.auxiliaries[0].head, model.blocks[0].units(images)
    upsampled = F.interpolate(h, (32, 32), mode="bilinear", align_corners=True)
    decoded = head.decoder(upsampled).sigmoid()
    image = (images * model.std + model.mean).clamp(0, 1)
    loss, logits = head(h, target, image)
    task = F.cross_entropy(head.classifier(h), target)
    torch.testing.assert_close(loss, 2 * F.binary_cross_entropy(decoded, image) + 3 * task)
    torch.testing.assert_close(logits, head.classifier(h))


def convolutions(module: nn.Module) -> list[tuple[int, int, int, bool]]:
    """Input and output channels, kernel, bias."""
    convs = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return [(c.in_channels, c.out_channels, c.kernel_size[0], c.bias is not None) for c in convs]


@pytest.mark.parametrize(
    ("channels", "size", "decoder", "sizes"),
    [
        (512, 28, [(512, 128, 1), (128, 32, 3), (32, 12, 3), (12, 3, 3)], [56, 112, 224]),
        (
            1024,
            14,
            [(1024, 192, 1), (192, 64, 1), (64, 32, 3), (32, 12, 3), (12, 3, 3)],
            [28, 56, 112, 224],
        ),
    ],
)
def test_infopro_heads_for_imagenet(channels: int, size: int, decoder: list, sizes: list) -> None:
    head = InfoProHead(
        site(channels=channels, size=(size, size), image_size=(224, 224), task=Classification(1000))
    ).eval()
    assert convolutions(head.decoder) == [(*conv, True) for conv in decoder]
    ups = [layer.size for layer in head.decoder if hasattr(layer, "size")]
    assert ups == [(up, up) for up in sizes]
    quarter = channels // 4
    assert convolutions(head.classifier) == [
        (channels, quarter, 1, False),
        (quarter, 256, 3, False),
        (256, 512, 3, False),
        (512, 2048, 1, False),
    ]
    strides = [c.stride[0] for c in head.classifier if isinstance(c, nn.Conv2d)]
    assert strides == [1, 2, 2, 1]
    norms = [layer for layer in head.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == len(decoder) - 1 + 4
    with torch.no_grad():
        h = torch.randn(1, channels, size, size)
        assert head.decoder(h).shape == (1, 3, 224, 224)
        assert head.classifier(h).shape == (1, 1000)


def site(**changes) -> Site:
    """The site of the one auxiliary of ResNet-20 in two blocks, changed."""
    model = resnet("infopro", k=2)
    units = list_units(model.backbone)
    here = Site(
        index=0,
        count=1,
        channels=32,
        size=(16, 16),
        next_size=(16, 16),
        layout=units.layout,
        image_size=(32, 32),
        image_channels=3,
        task=Classification(10),
        units=units,
        position=model.cuts[0],
        widths=(16, 16, 16, 16, 32, 32, 32, 64, 64, 64),
        norm="batch",
        criterion=F.cross_entropy,
    )
    return dataclasses.replace(here, **changes)


def test_the_contrast_loss_is_the_naive_loop() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(7, 128).double(), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    z = [row / row.norm() for row in outputs]
    total = 0.0
    for i, anchor in enumerate(z):
        others = [j for j in range(7) if j != i]
        positives = [j for j in others if target[j] == target[i]]
        denominator = sum(math.exp(anchor @ z[j] / 0.07) for j in others)
        terms = [-math.log(math.exp(anchor @ z[j] / 0.07) / denominator) for j in positives]
        total += sum(terms) / len(positives) if positives else 0.0
    assert supervised_contrast(outputs, target).item() == pytest.approx(total / 7)


def test_contrast_trains_and_gives_no_early_exits() -> None:
    model = resnet("infopro", local_loss="contrast")
    assert torch.isfinite(model.local_step(*batch()).losses).all()
    with pytest.raises(RuntimeError, match="learn by contrast and give no class logits"):
        model.forward_auxiliary(batch()[0])


def test_contrast_refuses_soft_targets_in_a_sentence() -> None:
    images, target = batch()
    with pytest.raises(ValueError, match="needs class labels; switch mixup and cutmix off"):
        resnet("infopro", local_loss="contrast").local_step(images, F.one_hot(target, 10).float())


def test_contrast_refuses_large_images_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="is for images up to 96 px; for 128 px use"):
        resnet("infopro", local_loss="contrast", img_size=128)


@pytest.mark.parametrize(("key", "near"), [("classifier", "1c2f"), ("local_loss", "contrast")])
def test_unknown_infopro_settings_name_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown {key} '{near}s'.* The nearest is '{near}'"):
        resnet("infopro", **{key: f"{near}s"})


# PredSim ------------------------------------------------------------------------------------------


def naive_similarity(rows: list[Tensor]) -> Tensor:
    unit = [(row - row.mean()) / ((row - row.mean()).norm() + 1e-8) for row in rows]
    return torch.stack([torch.stack([(a * b).sum().clamp(-1, 1) for b in unit]) for a in unit])


@pytest.mark.parametrize("shape", [(5, 8, 4, 4), (5, 3, 4, 4), (5, 8, 1, 1), (5, 10)])
def test_similarity_is_the_naive_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).double()
    over_space = len(shape) == 4 and shape[1] > 3 and shape[2] > 1
    rows = [
        torch.stack([channel.std() for channel in sample]) if over_space else sample.flatten()
        for sample in x
    ]
    torch.testing.assert_close(similarity(x), naive_similarity(rows))


def test_predsim_weighs_similarity_and_prediction() -> None:
    model = resnet("predsim", sim_weight=0.9, pred_weight=0.2)
    images, target = batch()
    head, h = model.auxiliaries[0].head, model.blocks[0].units(images)
    loss, logits = head(h, target, None)
    one_hot = F.one_hot(target, 10).float()
    sim = (similarity(head.decoder(h)) - similarity(one_hot)).square().mean()
    torch.testing.assert_close(loss, 0.9 * sim + 0.2 * F.cross_entropy(logits, target))


def test_predsim_compares_in_full_precision_under_autocast() -> None:
    head = resnet("predsim", sim_weight=1.0, pred_weight=0.0).auxiliaries[0].head
    head.decoder = nn.Identity()
    features = torch.rand(8, 16, 32, 32).bfloat16()
    target = torch.arange(8) // 2
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head(features, target, None)
    wanted = similarity(F.one_hot(target, head.num_classes).float())
    torch.testing.assert_close(loss, F.mse_loss(similarity(features.float()), wanted))


@pytest.mark.parametrize("img_size", [32, 40, 64, 96])
def test_predsim_pools_by_the_published_rule(img_size: int) -> None:
    model = resnet("predsim", k=10, img_size=img_size).eval()
    h = torch.randn(2, 3, img_size, img_size)
    for block, auxiliary in zip(model.blocks[:-1], model.auxiliaries, strict=True):
        h = block.units(h)
        kernel, padding, features = pooling_rule(*h.shape[1:])
        pool, linear = auxiliary.head.classifier[0], auxiliary.head.classifier[-1]
        assert (pool.kernel_size, pool.padding) == (kernel, padding)
        assert linear.in_features == pool(h)[0].numel() == features <= 512


def pooling_rule(channels: int, height: int, width: int):
    kh, kw, h, w = 1, 1, height, width
    while channels * h * w > 512 and kh < height:
        kh, h = 2 * kh, -(-height // (2 * kh))
        if channels * h * w > 512:
            kw, w = 2 * kw, -(-width // (2 * kw))
    padding = ((kh * (h - height // kh)) // 2, (kw * (w - width // kw)) // 2)
    return (kh, kw), padding, channels * h * w


# AugLocal -----------------------------------------------------------------------------------------


def test_auglocal_trains_the_last_units_as_one_block() -> None:
    model = build("resnet32", "auglocal", k=16, aux_depth=3)
    assert len(model.blocks) == 13
    assert model.block_name(12) == "layer3.1 to layer3.4"


def test_auglocal_depth_falls_over_the_blocks() -> None:
    model = build("resnet32", "auglocal", k=16, aux_depth=4, pyramid_coeff=0.5)
    depths = [len(auxiliary.head.features) for auxiliary in model.auxiliaries]
    locals_ = len(model.blocks)
    assert locals_ == 16 - 4
    fallen = [0.5 * j / (locals_ - 2) for j in range(locals_ - 1)]
    assert depths == [round(4 * (1 - f) + f) for f in fallen]
    assert depths[0] > depths[-1]


def test_auglocal_units_take_the_widths_that_follow_and_halve_where_they_double() -> None:
    model = build("resnet32", "auglocal", k=16, aux_depth=3)
    first, last = model.auxiliaries[0].head.features, model.auxiliaries[-1].head.features
    # After the stem (unit 0 of 15) units 5, 10 and 15 are drawn.
    assert [unit.conv1.out_channels for unit in first] == [16, 32, 64]
    assert [unit.conv1.stride[0] for unit in first] == [1, 2, 2]
    assert {unit.conv1.out_channels for unit in last} == {64}


def test_auglocal_halves_twice_where_the_width_jumps_by_four() -> None:
    jump = site(channels=4, widths=(4, 16, 16, 16), position=0)
    units = AugLocalHead(jump, aux_depth=3, pyramid_coeff=0).features
    assert [unit.conv1.stride[0] for unit in units] == [2, 2, 1]


def test_a_shallow_auglocal_head_normalises_its_features() -> None:
    heads = [a.head for a in build("resnet32", "auglocal", k=16, aux_depth=1).auxiliaries]
    assert all(isinstance(head.classifier[0], nn.BatchNorm1d) for head in heads)
    deep = build("resnet32", "auglocal", k=16, aux_depth=2, pyramid_coeff=0).auxiliaries[0].head
    assert [type(layer) for layer in deep.classifier] == [nn.Linear]


def test_an_auglocal_head_behind_a_copy_of_all_that_follows_has_no_units() -> None:
    cuts = "layer1.1 layer2.0 layer3.0"
    model = resnet("man_auglocal", k=4, cuts=cuts, aux_depth=1, momentum_units=2)
    last = model.auxiliaries[-1]
    assert [*model.links[-1].source] == [*model.backbone.layer3[1:]]
    assert len(last.head.features) == 0
    assert last.head.classifier[-1].in_features == 64
    assert torch.isfinite(model.local_step(*batch()).losses).all()


def test_auglocal_shares_no_weight_with_the_network() -> None:
    model = resnet("auglocal", k=10)
    own = {id(p) for p in model.backbone.parameters()}
    assert not own & {id(p) for p in model.auxiliaries.parameters()}


# DGL ----------------------------------------------------------------------------------------------


def layers(module: nn.Module, kind: type) -> list[nn.Module]:
    return [layer for layer in module if isinstance(layer, kind)]


@pytest.mark.parametrize(("j", "channels", "reduced"), [(0, 16, 8), (4, 32, 4), (7, 64, 2)])
def test_the_narrow_dgl_head(j: int, channels: int, reduced: int) -> None:
    head = resnet("dgl", k=10).auxiliaries[j].head.classifier
    assert [pool.output_size for pool in layers(head, nn.AdaptiveAvgPool2d)] == [reduced, 2]
    assert convolutions(head) == 3 * [(channels, channels, 1, False)]
    features = 4 * channels
    linears = [(layer.in_features, layer.out_features) for layer in layers(head, nn.Linear)]
    assert linears == [(features, features), (features, features), (features, 10)]


def test_the_wide_dgl_head() -> None:
    head = resnet("man_dgl", k=10).auxiliaries[0].head.classifier
    assert convolutions(head) == [(16, 128, 1, False), (128, 128, 1, False), (128, 128, 1, False)]
    linears = [(layer.in_features, layer.out_features) for layer in layers(head, nn.Linear)]
    assert linears == [(128, 512), (512, 512), (512, 512), (512, 10)]


@pytest.mark.parametrize(
    ("head", "expected", "strides", "groups"),
    [
        ("conv", [(16, 24, 3, False), (24, 24, 3, False)], [1, 2], [1, 1]),
        ("strided", [(16, 24, 3, False), (24, 24, 3, False)], [2, 2], [1, 1]),
        (
            "separable",
            [(16, 24, 1, False), *2 * [(1, 24, 3, False), (24, 24, 1, False)]],
            [1, 1, 1, 1, 1],
            [1, 24, 1, 24, 1],
        ),
    ],
)
def test_dgl_heads_that_convolve(head, expected, strides, groups) -> None:
    auxiliary = resnet("dgl", k=10, head=head, width=24).auxiliaries[0].head
    found = layers(auxiliary.classifier, nn.Conv2d)
    shapes = [(c.weight.shape[1], c.out_channels, c.kernel_size[0], c.bias is not None)
              for c in found]  # fmt: skip
    assert (shapes, [c.stride[0] for c in found], [c.groups for c in found]) == (
        expected,
        strides,
        groups,
    )
    assert auxiliary.view(torch.rand(2, 16, 32, 32)).shape == (2, 16, 8, 8)
    (linear,) = layers(auxiliary.classifier, nn.Linear)
    assert (linear.in_features, linear.out_features) == (24, 10)


def test_group_norm_heads_do_not_look_across_the_batch() -> None:
    model = resnet("dgl", head_norm="group")
    assert not any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.auxiliaries.modules()
    )
    assert torch.isfinite(model.local_step(*batch()).losses).all()
