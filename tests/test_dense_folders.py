"""Published layouts, each as a tiny folder: read as they are, and missed in one sentence."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import loaders, parse

from man_zoo.console import UserError
from man_zoo.data import open_dataset
from man_zoo.data.images import UnreadableImage

SIZE = (12, 20)  # height, width


def opened(task, name, folder):
    flags = ("--task", task, "--dataset", name, "--data-dir", folder)
    splits, _, names = open_dataset(parse(*flags), "RGB")
    return splits, names


def write_image(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path, numbers, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(numbers, np.uint8))
    if palette:
        image.putpalette(np.arange(768) % 256)
    image.save(path)


def columns(*numbers):
    """A mask whose columns have these numbers, one after the other."""
    return np.resize(np.array(numbers), SIZE[1])[None].repeat(SIZE[0], 0)


# ---------------------------------------------------------------------------------- Cityscapes


def cityscapes(root):
    for split, cities in (("train", ("bremen", "aachen")), ("val", ("ulm",))):
        for number, city in enumerate(cities):
            name = f"{city}_000000_000019"
            write_image(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", number)
            # unlabeled, road, ground, sidewalk, bicycle, car, licence plate as it is stored
            numbers = columns(0, 7, 6, 8, 33, 26, 255)
            write_mask(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", numbers)


def test_cityscapes_has_19_classes(tmp_path):
    cityscapes(tmp_path)
    (train, val), names = opened("segmentation", "cityscapes", tmp_path)
    assert (len(train), len(val), len(names)) == (2, 1, 19)
    assert "aachen" in train.images[0]  # in order, whatever the disk's is
    image, mask = train[0]
    assert image.size == (20, 12)
    assert mask[0, :7].tolist() == [255, 0, 255, 1, 18, 13, 255]
    assert [names[k] for k in (0, 1, 13, 18)] == ["road", "sidewalk", "car", "bicycle"]


def test_cityscapes_crops_and_whole_images(tmp_path):
    cityscapes(tmp_path)
    flags = ("--task", "segmentation", "--dataset", "cityscapes", "--data-dir", tmp_path)
    assert loaders(*flags, "-b", 1, "-j", 0)[2].full_size == (1024, 2048)
    sizes = ("--img-size", "8x10", "--full-size", "24x40")
    train, val, info = loaders(*flags, *sizes, "-b", 2, "-j", 0)
    assert info.input_size == (3, 8, 10)
    assert next(iter(train))[1].shape == (2, 8, 10)
    assert next(iter(val))[0].shape == (1, 3, 24, 40)


# ------------------------------------------------------------------------------------ Pascal VOC

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
</part></object>"""


def voc(root):
    root = root / "VOCdevkit/VOC2012"
    for number, split in enumerate(("train", "val")):
        name = f"2007_00000{number}"
        write_image(root / f"JPEGImages/{name}.jpg")
        write_mask(root / f"SegmentationClass/{name}.png", columns(0, 15, 255, 20), palette=True)
        things = [("person", 0, 1, 1, 20, 12), ("dog", 1, 3, 3, 5, 5), ("cat", 0, 2, 3, 4, 6)]
        keys = ("name", "difficult", "x1", "y1", "x2", "y2")
        objects = "".join(OBJECT.format(**dict(zip(keys, t, strict=True))) for t in things)
        (root / "Annotations").mkdir(exist_ok=True)
        text = f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(text)
        for kind in ("Segmentation", "Main"):
            (root / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / kind / f"{split}.txt").write_text(f"{name}\n")


def test_voc_masks(tmp_path):
    voc(tmp_path)
    (train, val), names = opened("segmentation", "voc", tmp_path)
    assert (len(train), len(val), len(names)) == (1, 1, 21)
    assert train[0][1][0, :4].tolist() == [0, 15, 255, 20]
    assert (names[0], names[15], names[20]) == ("background", "person", "tvmonitor")


def test_voc_boxes_count_from_zero_and_leave_out_the_difficult(tmp_path):
    voc(tmp_path)
    (train, _), names = opened("detection", "voc", tmp_path)
    target = train[0][1]
    assert target["boxes"].tolist() == [[0, 0, 20, 12], [1, 2, 4, 6]]
    assert [names[k] for k in target["labels"]] == ["person", "cat"]


# ---------------------------------------------------------------------------------------- ADE20K


def test_ade20k_counts_from_one(tmp_path):
    for split in ("training", "validation"):
        write_image(tmp_path / f"images/{split}/ADE_1.jpg")
        write_mask(tmp_path / f"annotations/{split}/ADE_1.png", columns(0, 1, 150))
    (train, val), names = opened("segmentation", "ade20k", tmp_path)
    assert (len(train), len(val), names[149]) == (1, 1, "150")
    assert train[0][1][0, :3].tolist() == [255, 0, 149]
    lines = [f"{k}\t0.1\t1\t1\t0\tthing{k}, other" for k in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tName", *lines]))
    assert opened("segmentation", "ade20k", tmp_path)[1][149] == "thing150"


def test_a_mask_that_is_none_of_its_image(tmp_path):
    for split in ("training", "validation"):
        write_image(tmp_path / f"images/{split}/1.jpg")
        write_mask(tmp_path / f"annotations/{split}/1.png", columns(1)[:5])
    (train, val), _ = opened("segmentation", "ade20k", tmp_path)
    with pytest.raises(UnreadableImage, match=r"1.png cannot be used: it has 5 x 20 .* 12 x 20"):
        train[0]
    write_image(tmp_path / "annotations/validation/1.png")
    with pytest.raises(UnreadableImage, match=r"1.png cannot be used: it has PIL mode RGB"):
        val[0]


# ------------------------------------------------------------------------------------------ COCO


def coco(root):
    kinds = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    for split in ("train2017", "val2017"):
        images = [
            {"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for number in (7, 4)
        ]
        for image in images:
            write_image(root / split / image["file_name"], image["id"])
        notes = [
            {"id": 1, "image_id": 4, "category_id": 18, "bbox": [2, 3, 5, 6], "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [0, 0, 20, 12], "iscrowd": 1},
        ]
        content = {"images": images, "annotations": notes, "categories": kinds}
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def test_coco_without_crowds_and_trained_on_images_with_boxes(tmp_path, capsys):
    coco(tmp_path)
    (train, val), names = opened("detection", "coco", tmp_path)
    assert names == ("car", "dog")
    assert (len(train), len(val)) == (1, 2)
    target = train[0][1]
    assert target["boxes"].tolist() == [[2, 3, 7, 9]]
    assert target["labels"].tolist() == [1]
    assert val[1][1]["boxes"].shape == (0, 4)
    assert capsys.readouterr().out == ""
    flags = ("--task", "detection", "--dataset", "coco", "--data-dir", tmp_path)
    _, loader, info = loaders(*flags, "-b", 1, "-vb", 2, "-j", 0, "--img-size", 40)
    images, rows = next(iter(loader))
    assert (info.num_classes, images.shape, rows.shape) == (2, (2, 3, 40, 40), (2, 100, 5))
    assert rows[0, 0].tolist() == [4, 6, 14, 18, 1]  # enlarged to fit into 40 pixels
    assert (rows[1, :, 4] == -1).all()


def test_coco_without_pycocotools(tmp_path, monkeypatch):
    coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"COCO is read .* pip install pycocotools adds it"):
        opened("detection", "coco", tmp_path)


# --------------------------------------------------------------------------------- Fashion-MNIST


def test_pasted_fashion(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.zeros((6, 28, 28), np.uint8)
    pixels[:, 4:24, 6:22], pixels[:, 10:14, 12:16] = 200, 0  # a coat with a dark button
    for prefix in ("train", "t10k"):
        header = np.array([0x803, 6, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([0x801, 6], ">i4").tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes([4] * 6))
    (train, _), names = opened("detection", "pasted_fashion", tmp_path)
    assert names[4] == "Coat"
    scene = train.draw(0)
    first = scene.objects == 0
    rows, across = np.nonzero(first)
    assert first[rows.min() : rows.max() + 1, across.min() : across.max() + 1].mean() > 0.95
    flags = ("--task", "segmentation", "--dataset", "fashion_mnist", "--data-dir", tmp_path)
    assert next(iter(loaders(*flags, "-b", 2, "-j", 0)[0]))[1].unique().tolist() == [0, 5]


# --------------------------------------------------------------------------------------- missing

MISSING = {
    "cityscapes": ("segmentation", "Cityscapes was not found in .*; expected leftImg8bit/SPLIT"),
    "voc": ("detection", "Pascal VOC 2012 was not found in .*; expected VOCdevkit/VOC2012/"),
    "ade20k": ("segmentation", r"ADE20K was not found in .*; expected images/SPLIT/\*.jpg"),
    "coco": ("detection", r"COCO was not found in .*annotations/instances_SPLIT.json"),
    "pasted_fashion": ("detection", "Fashion-MNIST was not found in .*FashionMNIST/raw/"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_told_in_one_sentence(name, tmp_path):
    task, sentence = MISSING[name]
    with pytest.raises(FileNotFoundError, match=sentence) as caught:
        opened(task, name, tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_images_are_left_out(tmp_path):
    for split in ("training", "validation"):
        for number in range(4):
            write_image(tmp_path / f"images/{split}/{number}.jpg")
            write_mask(tmp_path / f"annotations/{split}/{number}.png", columns(1))
        (tmp_path / f"annotations/{split}/2.png").write_bytes(b"no picture")
    flags = ("--task", "segmentation", "--dataset", "ade20k", "--data-dir", tmp_path)
    flags = (*flags, "-b", 4, "-j", 0, "--img-size", 16, "--full-size", 16)
    with pytest.raises(UnreadableImage, match=r"2.png cannot be used: it is no image"):
        list(loaders(*flags)[1])
    train, val, _ = loaders(*flags, "--skip-bad-images")
    assert [len(target) for _, target in val] == [3]
    assert [len(target) for _, target in train] == [4]
    assert len(train.bad_images) == len(val.bad_images) == 1
    assert torch.is_tensor(next(iter(train))[1])
