"""Segmentation: dense losses behind cuts, a decoder at the end, and nothing across a cut."""

import copy
from functools import partial

import pytest
import timm
import torch
from test_isolation import assert_equal, assert_learn_without_the_last, gradients
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50

import man_zoo
from man_zoo.meter import LiveBytes
from man_zoo.spec import make_spec
from man_zoo.tasks import Segmentation
from man_zoo.tasks.iou import IGNORED
from man_zoo.tasks.segmentation import PixelLoss

CLASSES, SIZE = 5, (64, 96)
METHODS = ["dgl", "infopro", "auglocal", "man_dgl", "man_infopro", "manpp_infopro", "overlap_dgl"]
SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}
decoders = pytest.mark.parametrize("decoder", ["deeplabv3", "fpn"])


def localize(
    method: str = "dgl", k: int | None = 3, backbone: str = "test_resnet", **keywords
) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    settings = {"img_size": SIZE, "decoder": "fpn"} | keywords
    return man_zoo.localize(
        backbone, method, k, task="segmentation", num_classes=CLASSES, **settings
    ).train()


def batch(size: tuple[int, int] = SIZE, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, *size, generator=generator)
    target = torch.randint(CLASSES, (count, *size), generator=generator)
    target[:, :8] = IGNORED
    return images, target


# The network --------------------------------------------------------------------------------------


@torch.no_grad()
def test_it_is_torchvisions_deeplab_to_the_bit() -> None:
    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    for buffer in theirs.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1 * torch.rand_like(buffer))
    ours = localize("e2e", None, "resnet50", output_stride=8, decoder="deeplabv3").eval()
    weights = theirs.state_dict()
    ours.backbone.load_state_dict(below(weights, "backbone."))
    ours.decoder.load_state_dict(below(weights, "classifier."))
    images, _ = batch()
    assert torch.equal(ours(images), theirs(images)["out"])


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


@pytest.mark.parametrize(
    ("backbone", "keywords"),
    [
        ("test_resnet", {"output_stride": 8}),
        ("resnetv2_18", {"channels": (32, 32, 64, 64), "stem_chs": 32}),
        ("test_efficientnet", {"output_stride": 16}),
        ("convnextv2_atto", {"output_stride": 8, **SMALL}),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1), "embed_dim": 16, "num_heads": (2, 2), "window_size": 8},
        ),
        ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
        ("cait_xxs24_224", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
    ],
)
@torch.no_grad()
def test_the_decoder_stands_on_what_timm_calls_features(backbone, keywords) -> None:
    model = localize("e2e", None, backbone, img_size=64, decoder="deeplabv3", **keywords).eval()
    images, _ = batch((64, 64))
    plain = timm.create_model(
        backbone, num_classes=0, **({"img_size": 64} if "img_size" in _taken(model) else {}),
        **keywords,
    ).eval()  # fmt: skip
    plain.load_state_dict(model.backbone.state_dict())
    features = plain.forward_features(images)
    if features.ndim == 3:
        patches = features[:, 1:]  # behind the class token
        features = patches.transpose(1, 2).unflatten(2, (4, 4))
    elif "swin" in backbone:
        features = features.permute(0, 3, 1, 2)
    wanted = model.decoder([features])
    assert torch.allclose(model(images), F.interpolate(wanted, (64, 64), mode="bilinear"))
    stride = keywords.get("output_stride")
    assert stride is None or features.shape[2] == 64 // stride


def _taken(model: man_zoo.LocalModel) -> tuple[str, ...]:
    return ("img_size",) if model.backbone.pretrained_cfg["fixed_input_size"] else ()


@decoders
def test_end_to_end_is_plain_training_of_the_network(decoder: str) -> None:
    model, (images, target) = localize("e2e", None, decoder=decoder), batch()
    plain = copy.deepcopy(model.network)
    torch.manual_seed(0)
    model.local_step(images, target)
    torch.manual_seed(0)
    logits = plain(images)
    loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    (loss / target.numel()).backward()
    assert_equal(gradients(model.backbone), gradients(plain.backbone))
    assert_equal(gradients(model.decoder), gradients(plain.decoder))


def test_a_checkpointed_network_learns_the_same() -> None:
    model, (images, target) = localize("e2e", None), batch()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for one in (model, other):
        one.criterion(one(images), target).backward()
    assert_equal(gradients(model), gradients(other))
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


def test_predictions_and_exits_have_the_size_of_the_images() -> None:
    model = localize("man_dgl")
    images, _ = batch((48, 64))
    shapes = [tuple(exit.shape) for exit in model.forward_exits(images)]
    assert shapes == [(2, CLASSES, 48, 64)] * 3
    assert model(images).shape == (2, CLASSES, 48, 64)
    assert model.num_classes == CLASSES


def test_another_number_of_classes_is_another_decoder() -> None:
    model = localize("man_dgl")
    model.reset_classifier(7)
    images, _ = batch()
    assert model.num_classes == 7
    assert [exit.shape[1] for exit in model.forward_exits(images)] == [7, 7, 7]
    assert model.backbone.num_classes == 0


def test_another_size_of_the_images_keeps_the_decoder() -> None:
    model = localize("infopro", 2)
    decoder = copy.deepcopy(model.decoder.state_dict())
    model.set_input_size((96, 64))
    assert_equal(list(decoder.values()), list(model.decoder.state_dict().values()))
    model.local_step(*batch((96, 64)))


# Gradients and memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns_from_its_own_block_alone(method: str) -> None:
    model, (images, target) = localize(method), batch()
    assert model.decoder.taps
    features, restored = images, model.restore(images)
    for j, block in enumerate(model.blocks):
        features, loss, _ = block(features, target, restored)
        assert not any(h.requires_grad for h in man_zoo.tasks.as_list(features))
        own = [p for p in block.parameters() if p.requires_grad]
        shared = (
            [*model.blocks[j + 1].units[0].parameters()] if "overlap" in method and j < 2 else []
        )
        others = [p for p in model.parameters() if all(p is not q for q in (*own, *shared))]
        model.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in own)
        assert all(p.grad is None for p in others)


def test_the_last_loss_reaches_no_tap_of_an_earlier_block() -> None:
    model = localize("man_dgl", output_stride=16)
    assert_learn_without_the_last(model, *batch())


@pytest.mark.parametrize("method", ["dgl", "man_infopro"])
def test_a_graph_is_gone_when_its_block_has_stepped(method: str) -> None:
    model, (images, target) = localize(method), batch()
    model.local_step(images, target)
    at_step = []
    with LiveBytes() as live:
        live.track(model, images, target)
        resident = live.current
        model.local_step(
            images,
            target,
            step=lambda j: at_step.append(live.current - resident),
            backward=partial(Tensor.backward, retain_graph=True),
        )
    with torch.no_grad():
        maps = [model.backbone.conv1(images)[..., ::2, ::2]]  # the stem's, after its pooling
        maps += [h for _, h in zip(range(4), _stages(model, images), strict=True)]
    restored = images.nbytes if model.restore(images) is not None else 0
    assert max(at_step) <= sum(h.nbytes for h in maps) + restored + 8192


def _stages(model: man_zoo.LocalModel, images: Tensor) -> list[Tensor]:
    return model.backbone.forward_intermediates(images, intermediates_only=True)[-4:]


# Losses -------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_all_pixels_at_the_targets_size() -> None:
    logits = torch.randn(2, CLASSES, 16, 24)
    _, target = batch()
    wanted = F.cross_entropy(
        F.interpolate(logits, SIZE, mode="bilinear"), target, ignore_index=IGNORED, reduction="none"
    )
    assert PixelLoss()(logits, target).item() == pytest.approx(wanted.mean().item())


def test_pixels_that_do_not_count_weigh_nothing() -> None:
    logits = torch.randn(2, CLASSES, *SIZE, requires_grad=True)
    _, target = batch()
    PixelLoss()(logits, target).backward()
    assert logits.grad[:, :, :8].abs().max() == 0 < logits.grad[:, :, 8:].abs().min()
    assert PixelLoss()(logits, torch.full_like(target, IGNORED)) == 0


@pytest.mark.parametrize("method", ["man_dgl", "infopro"])
def test_slices_of_a_batch_learn_as_the_whole_where_no_norm_meets_them(method: str) -> None:
    model = localize(method, 3, "convnextv2_atto", head_norm="group", **SMALL)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.0
    images, target = batch(count=3)
    sliced = copy.deepcopy(model)
    whole = model.local_step(images, target)
    slices = sliced.local_step(images, target, micro_batches=2)
    assert torch.allclose(whole.losses, slices.losses)
    assert torch.allclose(whole.logits, slices.logits, atol=1e-5)
    for one, two in zip(model.blocks, sliced.blocks, strict=True):
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-5)


@pytest.mark.parametrize("form", ["paper", "release"])
def test_man_learns_in_both_forms(form: str) -> None:
    model, (images, _) = localize("man_dgl", form=form), batch()
    target = torch.tensor([1, 3])[:, None, None].expand(2, *SIZE)
    optimizers = [
        torch.optim.SGD([p for p in block.parameters() if p.requires_grad], 0.003, momentum=0.9)
        for block in model.blocks
    ]
    copies = [[p.clone() for p in link.target.ema.parameters()] for link in model.links]

    def update(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    losses = torch.stack([model.local_step(images, target, step=update).losses for _ in range(12)])
    assert (losses[-1] < 0.9 * losses[0]).all()
    for link, before in zip(model.links, copies, strict=True):
        moved = [
            (a - b).abs().max() for a, b in zip(link.target.ema.parameters(), before, strict=True)
        ]
        assert max(moved) > 0


# Scores -------------------------------------------------------------------------------------------


def test_scores_are_counted_pixel_by_pixel() -> None:
    task = Segmentation(3)
    truth = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, IGNORED]]])
    found = torch.tensor([[[0, 1, 1, 1], [0, 1, 0, 0]]])
    logits = 10.0 * F.one_hot(found, 3).permute(0, 3, 1, 2).float()
    tally = task.tally()
    tally.add(logits, truth)
    scores = task.scores([tally])
    assert scores["iou"][:2] == pytest.approx([50.0, 60.0])  # 2 of 4, 3 of 5
    assert scores["iou"][2] != scores["iou"][2]  # there is none
    assert scores["miou"] == pytest.approx(55.0)
    assert scores["pixels"] == pytest.approx(500 / 7)
    assert scores["loss"] == pytest.approx(PixelLoss()(logits, truth).item())


def test_a_batch_that_is_too_small_for_the_decoder_is_said_in_a_sentence() -> None:
    model, (images, target) = localize(decoder="deeplabv3"), batch()
    with pytest.raises(ValueError, match=r"A batch of 1 is too small.*takes 2 images or more"):
        model.local_step(images[:1], target[:1])
    with pytest.raises(ValueError, match="A batch of 2 in 2 micro-batches is too small"):
        model.local_step(images, target, micro_batches=2)
    localize(decoder="fpn").local_step(images[:1], target[:1])


# What was published, and what is refused ----------------------------------------------------------


def test_infopros_published_cut_and_weights_are_the_default() -> None:
    with torch.device("meta"):
        names = man_zoo.families.list_units(timm.create_model("resnet101")).names
    cut = man_zoo.split.choose_cuts("resnet101", names, 2, task="segmentation")
    assert [names[i] for i in cut] == ["layer3.12"]
    spec = make_spec("resnet101", "infopro", 2, {}, task="segmentation")
    assert spec.head_settings == {"lambda1": (1.5, 1.5), "lambda2": (1.0, 1.0)}


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"method": "predsim"}, "predsim compares the labels of images, and segmentation labels"),
        ({"method": "man_predsim"}, "use dgl, infopro or auglocal"),
        ({"method": "infopro", "local_loss": "contrast"}, "local_loss='contrast' compares the"),
        ({"head": "wide"}, "Unknown keyword for dgl for segmentation 'head'"),
        ({"decoder": "fpm"}, "Unknown decoder of segmentation 'fpm'.*The nearest is 'fpn'"),
        ({"output_stride": 5}, "takes no output_stride=5"),
        ({"backbone": "vgg11"}, "vgg11 takes no output_stride=8"),
        ({"backbone": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224 takes no output_stride=8"),
        ({"num_classes": 0}, "num_classes=0 is impossible for segmentation"),
        ({"task": "segmentatoin"}, "Unknown task.*The nearest is 'segmentation'"),
        ({"task": "classification"}, "decoder='fpn' is for dense tasks"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(keywords, said) -> None:
    given = {"backbone": "test_resnet", "method": "dgl", "k": 2, "output_stride": 8}
    given |= {"task": "segmentation", "num_classes": CLASSES, "decoder": "fpn", "img_size": SIZE}
    with pytest.raises(ValueError, match=said):
        man_zoo.localize(**(given | keywords))
