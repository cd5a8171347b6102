"""Data sets in the layouts in which they are published, as torchvision reads them."""

import contextlib
import io
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import Cityscapes, CocoDetection, VOCDetection, VOCSegmentation
from torchvision.tv_tensors import BoundingBoxes, Mask

from ...console import UserError
from ...tasks.iou import IGNORED
from ..images import naming, read_image
from .info import VOC

LAYOUTS = {
    "Cityscapes": "leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and "
    "gtFine/SPLIT/CITY/*_gtFine_labelIds.png",
    "Pascal VOC 2012": "VOCdevkit/VOC2012/ with JPEGImages, ImageSets, SegmentationClass and "
    "Annotations",
    "ADE20K": "images/SPLIT/*.jpg and annotations/SPLIT/*.png",
    "COCO": "SPLIT/*.jpg and annotations/instances_SPLIT.json",
}


class AnnotatedFiles(Dataset):
    """(PIL image, target) of image files and what is said of each.

    Args:
        images: Files.
        notes: What is said of each image: a file, or what was in one.
        read: From an image and its note to a target; names what it cannot use.
        classes: Names, if the files say them.
    """

    def __init__(
        self,
        images: Sequence[str],
        notes: Sequence[Any],
        read: Callable[[Image.Image, Any], Any],
        classes: tuple[str, ...] = (),
    ) -> None:
        self.images, self.notes, self.read, self.classes = images, notes, read, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = read_image(self.images[index], "RGB")
        note = self.notes[index]
        with naming(lambda: note if isinstance(note, str) else self.images[index]):
            return image, self.read(image, note)


class MaskReader:
    """The class of every pixel, from a picture of numbers.

    Args:
        classes: ``(256,)``: the class of each number, 255 for none.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.table = np.array(classes, np.uint8)

    def __call__(self, image: Image.Image, path: str) -> Mask:
        """The mask of an image, from a file.

        Raises:
            ValueError: If it is of another size, or no picture of numbers.
        """
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise ValueError(f"it has PIL mode {picture.mode}; expected a number a pixel")
            numbers = np.asarray(picture)
        if numbers.shape[::-1] != image.size:
            height, width = numbers.shape
            raise ValueError(
                f"it has {height} x {width} pixels; expected {image.height} x {image.width}, as "
                "its image"
            )
        return Mask(torch.from_numpy(self.table[numbers]))


def open_cityscapes(args: Namespace) -> tuple[AnnotatedFiles, AnnotatedFiles]:
    """Fine annotations with the 19 classes that count.

    Raises:
        FileNotFoundError: If they are not there.
    """
    table = [IGNORED] * 256
    for kind in Cityscapes.classes:
        if not kind.ignore_in_eval:
            table[kind.id] = kind.train_id

    def one(split: str) -> AnnotatedFiles:
        with _found("Cityscapes", args):
            files = Cityscapes(args.data_dir, split, "fine", "semantic")
        pairs = sorted(zip(files.images, [note for (note,) in files.targets], strict=True))
        images, notes = zip(*pairs, strict=True)
        return AnnotatedFiles(images, notes, MaskReader(table))

    return one(args.train_split or "train"), one(args.val_split or "val")


def open_voc(args: Namespace) -> tuple[AnnotatedFiles, AnnotatedFiles]:
    """Pascal VOC 2012: 21 classes a pixel, or 20 of objects, without those marked difficult.

    Raises:
        FileNotFoundError: If they are not there.
    """
    masks = args.task == "segmentation"
    table = [*range(len(VOC) + 1), *[IGNORED] * (255 - len(VOC))]
    kind = VOCSegmentation if masks else VOCDetection
    read = MaskReader(table) if masks else _voc_boxes

    def one(split: str) -> AnnotatedFiles:
        with _found("Pascal VOC 2012", args):
            files = kind(args.data_dir, image_set=split, download=args.download)
        return AnnotatedFiles(files.images, files.targets, read)

    return one(args.train_split or "train"), one(args.val_split or "val")


def open_ade20k(args: Namespace) -> tuple[AnnotatedFiles, AnnotatedFiles]:
    """The scene parsing benchmark's 150 classes; 0 is none.

    Raises:
        FileNotFoundError: If they are not there.
    """
    table = [IGNORED, *range(150), *[IGNORED] * 105]
    root = Path(args.data_dir)

    def one(split: str) -> AnnotatedFiles:
        with _found("ADE20K", args):
            images = sorted((root / "images" / split).glob("*.jpg"))
            notes = [root / "annotations" / split / f"{image.stem}.png" for image in images]
            if not images or not all(note.is_file() for note in notes):
                raise RuntimeError
        paths = list(map(str, images)), list(map(str, notes))
        return AnnotatedFiles(*paths, MaskReader(table), _ade20k_names(root))

    return one(args.train_split or "training"), one(args.val_split or "validation")


def open_coco(args: Namespace) -> tuple[AnnotatedFiles, AnnotatedFiles]:
    """Any data set with COCO's annotations, without crowds; images without a box train nothing.

    Raises:
        FileNotFoundError: If they are not there.
        UserError: If pycocotools is not installed.
    """
    root = Path(args.data_dir)

    def one(split: str, train: bool) -> AnnotatedFiles:
        with _found("COCO", args), contextlib.redirect_stdout(io.StringIO()):
            note_file = root / "annotations" / f"instances_{split}.json"
            files = CocoDetection(str(root / split), str(note_file))
        kinds = sorted(files.coco.loadCats(files.coco.getCatIds()), key=lambda kind: kind["id"])
        numbers = {kind["id"]: number for number, kind in enumerate(kinds)}
        images, notes = [], []
        for key in files.ids:
            found = [
                (*note["bbox"], numbers[note["category_id"]])
                for note in files.coco.loadAnns(files.coco.getAnnIds(key))
                if not note.get("iscrowd")
            ]
            if found or not train:
                images.append(str(root / split / files.coco.loadImgs(key)[0]["file_name"]))
                notes.append(np.array(found, np.float32).reshape(-1, 5))
        return AnnotatedFiles(images, notes, _coco_boxes, tuple(kind["name"] for kind in kinds))

    return one(args.train_split or "train2017", True), one(args.val_split or "val2017", False)


@contextlib.contextmanager
def _found(label: str, args: Namespace) -> Any:
    """Say which files were expected.

    Raises:
        FileNotFoundError: For files that are not there.
        UserError: For a package that is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(
            f"{label} is read with {package}, which is not installed; pip install {package} "
            "adds it."
        ) from error
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"{label} was not found in {args.data_dir}; expected {LAYOUTS[label]} there."
        ) from error


def _voc_boxes(image: Image.Image, path: str) -> dict[str, Tensor]:
    note = VOCDetection.parse_voc_xml(ElementTree.parse(path).getroot())["annotation"]
    found = [thing for thing in note["object"] if not int(thing.get("difficult", 0))]
    names = ("xmin", "ymin", "xmax", "ymax")
    sides = [[float(thing["bndbox"][name]) for name in names] for thing in found]
    corners = torch.tensor(sides).reshape(-1, 4)
    corners[:, :2] -= 1  # pixels are counted from 1, the last one included
    return _boxes(image, corners, torch.tensor([VOC.index(thing["name"]) for thing in found]))


def _coco_boxes(image: Image.Image, rows: np.ndarray) -> dict[str, Tensor]:
    corners = torch.from_numpy(rows[:, :4]).clone()
    corners[:, 2:] += corners[:, :2]
    return _boxes(image, corners, torch.from_numpy(rows[:, 4]).long())


def _boxes(image: Image.Image, corners: Tensor, labels: Tensor) -> dict[str, Tensor]:
    boxes = BoundingBoxes(corners, format="XYXY", canvas_size=(image.height, image.width))  # type: ignore[call-overload]
    return {"boxes": boxes, "labels": labels}


def _ade20k_names(root: Path) -> tuple[str, ...]:
    """From ``objectInfo150.txt``, of synonyms the first; numbers where that is missing."""
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return tuple(map(str, range(1, 151)))
    _, *lines = path.read_text(encoding="utf-8").strip().splitlines()
    return tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines)
