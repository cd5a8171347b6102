"""Detection: torchvision's RetinaNet, heads behind cuts on the levels they serve, boxes found."""

import copy
import math

import pytest
import timm
import torch
from test_isolation import assert_learn_without_the_last
from test_segmentation import SMALL, below
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionsRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList

import man_zoo
from man_zoo.families import list_units, map_shapes
from man_zoo.meter import LiveBytes, fake
from man_zoo.split import choose_cuts
from man_zoo.tasks import Detection
from man_zoo.tasks.detection_loss import DetectionLoss
from man_zoo.tasks.retinanet import Anchors

CLASSES, SIZE = 5, (64, 96)
METHODS = ["dgl", "infopro", "auglocal", "man_dgl", "man_infopro", "manpp_infopro", "overlap_dgl"]
kinds = pytest.mark.parametrize("kind", ["retinanet", "retinanet_v2"])
CONSTRUCTORS = {"retinanet": retinanet_resnet50_fpn, "retinanet_v2": retinanet_resnet50_fpn_v2}


def localize(
    method: str = "dgl", k: int | None = 4, backbone: str = "test_resnet", **keywords
) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    settings = {"img_size": SIZE, "anchor_size": 8, "pyramid_width": 32} | keywords
    return man_zoo.localize(
        backbone, method, k, task="detection", num_classes=CLASSES, **settings
    ).train()


def batch(size: tuple[int, int] = SIZE, count: int = 3) -> tuple[Tensor, Tensor]:
    """The second image shows nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        images = torch.randn(count, 3, *size)
        target = Detection(CLASSES).random_target(count, size)
    target[:, 5:, 4] = -1
    target[1, :, 4] = -1
    return images, target


def torchvisions(kind: str) -> TorchvisionsRetinaNet:
    """With random weights, statistics and all; anchors and their scores are such that much is
    found."""
    torch.manual_seed(0)
    model = CONSTRUCTORS[kind](weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1 * torch.rand_like(buffer))
    for parameter in model.head.parameters():
        parameter.data.mul_(3)
    model.head.classification_head.cls_logits.bias.data.fill_(-3)
    return model


def with_weights_of(theirs: TorchvisionsRetinaNet, kind: str) -> man_zoo.LocalModel:
    ours = localize(
        "e2e", None, "resnet50", decoder=kind, anchor_size=32, pyramid_width=256, img_size=64
    ).eval()
    weights = theirs.state_dict()
    ours.backbone.load_state_dict(below(weights, "backbone.body."))
    ours.decoder.load_state_dict(below(weights, "backbone.") | weights, strict=False)
    return ours


# The network --------------------------------------------------------------------------------------


@kinds
@torch.no_grad()
def test_it_is_torchvisions_retinanet_to_the_bit(kind: str) -> None:
    theirs = torchvisions(kind)
    ours = with_weights_of(theirs, kind)
    assert below(theirs.state_dict(), "head.").keys() == ours.decoder.head.state_dict().keys()
    images, _ = batch((64, 160), 2)  # no multiple of P6's stride
    prediction = ours(images)
    said = Anchors.of(prediction)

    maps = list(theirs.backbone(images).values())
    outputs = theirs.head(maps)
    anchors = theirs.anchor_generator(ImageList(images, [(64, 160)] * 2), maps)
    assert torch.equal(said.logits, outputs["cls_logits"])
    assert torch.equal(said.regression, outputs["bbox_regression"])
    assert torch.equal(said.boxes, torch.stack(anchors))

    theirs.transform = _Nothing()
    found, wanted = ours.task.detections(prediction), theirs(images)
    assert len(wanted[0]["boxes"]) > 20
    for one, other in zip(found, wanted, strict=True):
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(one[key], other[key]), (key, one[key], other[key])


class _Nothing(nn.Module):
    """In place of torchvision's normalisation and resizing."""

    def forward(self, images, targets):
        return ImageList(images, [tuple(x.shape[1:]) for x in images]), targets

    def postprocess(self, detections, *_):
        return detections


@kinds
def test_the_loss_is_torchvisions(kind: str) -> None:
    theirs = torchvisions(kind)
    torch.manual_seed(0)
    sizes = [[12, 8], [6, 4], [3, 2], [2, 1], [1, 1]]
    maps = [torch.randn(3, 256, *size[::-1], dtype=torch.float64) for size in sizes]
    head = theirs.head.double()
    ours = Detection(CLASSES, kind)
    images, target = batch()
    target = target.double()

    outputs = head(maps)
    prediction = ours._design.predict(head, maps, 3)
    anchors = theirs.anchor_generator(ImageList(images, [SIZE] * 3), maps)
    rows = [of_image[of_image[:, 4] >= 0] for of_image in target]
    targets = [{"boxes": own[:, :4], "labels": own[:, 4].long()} for own in rows]
    wanted = sum(theirs.compute_loss(targets, outputs, anchors).values())
    loss = ours.criterion()(prediction, target)
    # torchvision's GIoU of pairs has an epsilon that is none in its GIoU of all with all.
    exact = 1e-12 if kind == "retinanet" else 1e-7
    assert loss.item() == pytest.approx(wanted.item(), rel=exact)
    parameters = list(head.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e3 * exact, atol=exact)


def test_rows_that_are_no_box_may_stand_anywhere() -> None:
    prediction, (_, target) = localize("e2e", None)(batch()[0]).detach(), batch()
    shuffled = target.flip(1)
    loss = DetectionLoss()
    assert loss(prediction, shuffled).item() == pytest.approx(loss(prediction, target).item())


def test_an_image_without_objects_teaches_what_ground_is() -> None:
    model, (images, target) = localize("man_dgl"), batch()
    target[:, :, 4] = -1
    out = model.local_step(images, target)
    assert out.losses.isfinite().all()
    assert (out.losses > 0).all()
    heads = [model.decoder.head, *(a.head.classifier.head.head for a in model.auxiliaries)]
    for head in heads:
        assert head.classification_head.cls_logits.weight.grad.abs().max() > 0
        assert head.regression_head.bbox_reg.weight.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("backbone", "keywords"),
    [
        ("resnetv2_18", {"channels": (32, 32, 64, 64), "stem_chs": 32}),
        ("test_efficientnet", {}),
        ("convnextv2_atto", SMALL),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (2,) * 4, "window_size": 2},
        ),
    ],
)
@torch.no_grad()
def test_the_pyramid_stands_on_what_timm_calls_features(backbone, keywords) -> None:
    model = localize("dgl", 3, backbone, img_size=64, **keywords).eval()
    images, _ = batch((64, 64))
    sized = {"img_size": 64} if "swin" in backbone else {}
    plain = timm.create_model(backbone, features_only=True, **sized, **keywords).eval()
    units = list_units(model.backbone)
    shapes = map_shapes(model.backbone, (3, 64, 64))
    tapped = [shapes[i] for i in (*model.decoder.taps, len(units) - 1)]
    wanted = [x.shape for x in plain(images)[-3:]]
    wanted = [(s[0], s[3], s[1], s[2]) if "swin" in backbone else s for s in wanted]
    assert [x[2:] for x in tapped] == [tuple(s[2:]) for s in wanted] == [(8, 8), (4, 4), (2, 2)]
    assert [x[1] for x in tapped[:2]] == [s[1] for s in wanted[:2]]
    assert model(images).shape == (3, 9 * (64 + 16 + 4 + 1 + 1), CLASSES + 9)
    assert len(model.forward_exits(images)) == 3


# The heads behind cuts ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns_from_its_own_block_alone(method: str) -> None:
    model, (images, target) = localize(method, 3 if method == "auglocal" else 4), batch()
    assert model.decoder.taps
    features, restored, last = images, model.restore(images), len(model.blocks) - 1
    for j, block in enumerate(model.blocks):
        features, loss, _ = block(features, target, restored)
        assert not any(h.requires_grad for h in man_zoo.tasks.as_list(features))
        own = [p for p in block.parameters() if p.requires_grad]
        shared = (
            [*model.blocks[j + 1].units[0].parameters()] if "overlap" in method and j < last else []
        )
        others = [p for p in model.parameters() if all(p is not q for q in (*own, *shared))]
        model.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in own)
        assert all(p.grad is None for p in others)


def test_the_last_loss_reaches_no_tap_of_an_earlier_block() -> None:
    model = localize("man_dgl")
    assert max(model.decoder.taps) <= model.cuts[-1]
    assert_learn_without_the_last(model, *batch())


@pytest.mark.parametrize("method", ["dgl", "man_infopro"])
def test_a_graph_is_gone_when_its_block_has_stepped(method: str) -> None:
    model, (images, target) = localize(method), batch()
    model.local_step(images, target)
    at_step = []
    with LiveBytes() as live:
        live.track(model, images, target)
        resident = live.current
        model.local_step(images, target, step=lambda j: at_step.append(live.current - resident))
    shapes = map_shapes(model.backbone, (3, *SIZE))
    maps = [shapes[i] for i in (*model.decoder.taps, *model.cuts)]
    restored = images.nbytes if model.restore(images) is not None else 0
    prediction = 4 * model(images).numel()
    features = sum(4 * len(images) * math.prod(shape) for shape in maps)
    assert max(at_step) <= features + restored + prediction + 8192


@pytest.mark.parametrize("method", ["dgl", "man_dgl", "overlap_dgl"])
def test_a_block_a_stage_serves_the_levels_that_manpp_names(method: str) -> None:
    model = localize(method)
    heads = [auxiliary.head.classifier.head for auxiliary in model.auxiliaries]
    said = [Anchors.of(exit) for exit in model.forward_exits(batch()[0])]
    strides = [of_exit.strides.unique().tolist() for of_exit in said]
    assert strides == [[8], [16], [32, 64, 128], [8, 16, 32, 64, 128]]
    assert [of_exit.image_size() for of_exit in said] == [SIZE] * 4
    # Anchors are the network's own of those levels.
    counts = said[-1].levels()
    for own, part in zip(
        said, said[-1].boxes.split([*counts[:2], sum(counts[2:])], 1), strict=False
    ):
        assert torch.equal(own.boxes, part)
    for head in heads:
        assert len(head.head.classification_head.conv) == 2
        assert len(head.head.regression_head.conv) == 2


@pytest.mark.parametrize(
    ("cut", "first"),
    [
        *(("stem", 3), ("layer1.0", 3), ("layer1.2", 3), ("layer2.0", 3), ("layer2.3", 4)),
        *(("layer3.1", 4), ("layer3.5", 5), ("layer4.0", 5)),
    ],
)
@pytest.mark.parametrize("method", ["dgl", "man_dgl"])
def test_a_cut_within_a_stage_serves_the_level_of_its_stride(method, cut, first) -> None:
    model = localize(method, 2, "resnet50", cuts=cut, img_size=64)
    prediction = model.forward_exits(batch((64, 64))[0])[0]
    assert Anchors.of(prediction).strides[0, 0] == 2**first


@pytest.mark.parametrize(
    ("backbone", "cuts"),
    [
        ("resnet50", "layer1.2 layer2.3 layer3.5"),
        ("resnet152", "layer1.2 layer2.7 layer3.35"),
        ("resnet18", "layer1.1 layer2.1 layer3.1"),
        ("convnext_tiny", "stages.0.blocks.2 stages.1.blocks.2 stages.2.blocks.8"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.1 layers.1.blocks.1 layers.2.blocks.5"),
    ],
)
def test_as_many_blocks_as_stages_are_the_stages(backbone: str, cuts: str) -> None:
    with torch.device("meta"):
        names = list_units(timm.create_model(backbone)).names
    by_default = choose_cuts(backbone, names, 4, task="detection")
    assert [names[i] for i in by_default] == cuts.split()
    assert choose_cuts(backbone, names, 4, "stages") == by_default
    assert choose_cuts(backbone, names, 3, task="detection") == choose_cuts(backbone, names, 3)


@pytest.mark.parametrize("method", ["man_dgl", "infopro"])
def test_slices_of_a_batch_learn_as_the_whole(method: str) -> None:
    model = localize(method, 3, "convnextv2_atto", head_norm="group", **SMALL).double()
    images, target = (x.double() for x in batch())
    sliced = copy.deepcopy(model)
    whole = model.local_step(images, target)
    slices = sliced.local_step(images, target, micro_batches=2)
    assert torch.allclose(whole.losses, slices.losses)
    assert torch.allclose(whole.logits, slices.logits)
    for one, two in zip(model.blocks, sliced.blocks, strict=True):
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad)


def test_on_tensors_without_data_a_step_has_the_same_shapes() -> None:
    model, data = localize("man_dgl"), batch()
    out = model.local_step(*data)
    with fake((model, *data)) as (shadow, *shadows):
        said = shadow.local_step(*shadows)
    assert said.logits.shape == out.logits.shape
    assert said.losses.shape == out.losses.shape


# What is found ------------------------------------------------------------------------------------


def perfect(target: Tensor) -> Tensor:
    """A prediction of which every box of the target is decoded, by the anchor that is its own."""
    model = localize("e2e", None)
    prediction = model(batch()[0]).detach()
    said = Anchors.of(prediction)
    said.logits.fill_(-9.0)
    for i, rows in enumerate(target):
        for row in rows[rows[:, 4] >= 0]:
            box = row[:4]
            centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            at = torch.randint(said.boxes.shape[1], ()).item()
            anchor = said.boxes[i, at]
            middle, own = (anchor[:2] + anchor[2:]) / 2, anchor[2:] - anchor[:2]
            said.regression[i, at, :2] = (centre - middle) / own
            said.regression[i, at, 2:] = (sides / own).log()
            said.logits[i, at, int(row[4])] = 4.0
    return prediction


def test_scores_are_those_of_all_images_together() -> None:
    pytest.importorskip("torchmetrics")
    task, (_, target) = Detection(CLASSES), batch()
    tallies = [task.tally(), task.tally()]
    prediction = perfect(target)
    tallies[0].add(prediction[:1], target[:1])
    tallies[1].add(prediction[1:], target[1:])
    scores = task.scores(tallies)
    assert scores["map50"] == pytest.approx(100)
    assert scores["map"] > 95
    assert len(scores["ap"]) == CLASSES
    assert scores["loss"] == pytest.approx(task.criterion()(prediction, target).item(), rel=1e-5)
    missed = task.tally()
    missed.add(perfect(torch.full_like(target, -1)), target)
    assert task.scores([missed])["map50"] == 0


def test_boxes_end_where_the_image_does() -> None:
    target = torch.tensor([[[-20.0, -20, 40, 40, 1]], [[50, 30, 200, 90, 2]], [[0, 0, 9, 9, -1]]])
    one, two, none = Detection(CLASSES).detections(perfect(target))
    assert one["boxes"].round().tolist() == [[0, 0, 40, 40]]
    assert two["boxes"].round().tolist() == [[50, 30, 96, 64]]
    assert (one["labels"].item(), two["labels"].item()) == (1, 2)
    assert none["boxes"].shape == (0, 4)


def test_an_exit_finds_boxes_too() -> None:
    model = localize("man_dgl").eval()
    for exit in model.forward_exits(batch()[0]):
        exit[..., :CLASSES] = 3.0
        found = model.task.detections(exit)
        assert all(0 < len(one["boxes"]) <= 300 for one in found)


def test_another_number_of_classes_is_another_decoder() -> None:
    model = localize("man_dgl")
    model.reset_classifier(7)
    images, _ = batch((96, 64))
    shapes = [exit.shape[2] for exit in model.forward_exits(images)]
    assert shapes == [7 + 9] * 4
    assert model.task == Detection(7, anchor_size=8, pyramid_width=32)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "k"), [("e2e", None), ("man_dgl", 4)])
def test_it_learns_where_squares_are(method: str, k: int | None) -> None:
    pytest.importorskip("torchmetrics")
    model = localize(method, k, decoder="retinanet_v2", img_size=64)
    torch.manual_seed(0)
    images, target = torch.zeros(4, 3, 64, 64), torch.full((4, 2, 5), -1.0)
    for i in range(4):
        for j, label in enumerate(range(1 + i % 2)):
            x, y, side = 4 + 30 * j, int(torch.randint(40, ())), 12 + 4 * i
            images[i, label, y : y + side, x : x + side] = 2.0
            target[i, j] = torch.tensor([x, y, x + side, min(y + side, 64), label])
    optimizers = [
        torch.optim.AdamW([p for p in block.parameters() if p.requires_grad], 0.003)
        for block in model.blocks
    ]

    def update(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    for _ in range(80):
        model.local_step(images, target, step=update)
    tally = model.task.tally()
    with torch.no_grad():
        tally.add(model(images), target)
    assert model.task.scores([tally])["map50"] > 90


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"method": "predsim"}, "predsim compares the labels of images, and detection labels"),
        ({"method": "infopro", "local_loss": "contrast"}, "local_loss='contrast' compares the"),
        ({"backbone": "vit_tiny_patch16_224"}, "stages of stride 8, 16 and 32.*are of stride 16;"),
        ({"backbone": "resnet20"}, "are of stride 1, 2, 4; expected one with four stages"),
        ({"output_stride": 16}, "are of stride 4, 8, 16; .* no output_stride"),
        ({"img_size": 100}, "multiples of 32 pixels, and got 100x100; the nearest is 96x96"),
        ({"decoder": "fpn"}, "Unknown decoder of detection 'fpn'.*retinanet"),
        ({"anchor_size": 0}, "anchor_size=0 is impossible for detection; expected 1 or more"),
        ({"num_classes": 0}, "num_classes=0 is impossible for detection"),
        ({"decoder": "retinanet_v2", "pyramid_width": 48}, "expected a multiple of 32"),
        ({"cuts": "stages", "k": 3}, "cuts='stages' is a block a stage.*has 4; expected k=4"),
        ({"head": "wide"}, "Unknown keyword for dgl for detection 'head'"),
        ({"task": "segmentation", "anchor_size": 8}, "'anchor_size'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(keywords, said) -> None:
    given = {"backbone": "test_resnet", "method": "dgl", "k": 4, "task": "detection"}
    given |= {"num_classes": CLASSES, "img_size": 224 if "vit" in str(keywords) else SIZE}
    with pytest.raises(ValueError, match=said):
        man_zoo.localize(**(given | keywords))


def test_other_images_are_refused_in_a_sentence() -> None:
    model = localize("man_dgl")
    with pytest.raises(ValueError, match="multiples of 32 pixels"):
        model(torch.randn(1, 3, 80, 80))


def test_a_focal_loss_knows_no_smoothing() -> None:
    with pytest.raises(ValueError, match=r"smoothing=0\.1 .* expected 0 for detection"):
        Detection(CLASSES).criterion(0.1)


def test_what_is_found_is_drawn_beside_what_is_true() -> None:
    model = localize("e2e", None).eval()
    images, target = torch.zeros(2, 3, *SIZE), torch.full((2, 1, 5), -1.0)
    target[0, 0] = torch.tensor([8.0, 8, 40, 40, 1])
    found = model.task.drawable(model(images))
    words = (["a", "b", "c", "d", "e"], [0.5] * 3, [0.5] * 3)
    with_box = model.task.draw(images, [target, found], *words)
    without = model.task.draw(images, [torch.full_like(target, -1), found], *words)
    assert with_box.size == without.size
    assert with_box.tobytes() != without.tobytes()
