"""How the data sets of dense tasks are usually trained."""

from typing import Any

from torchvision.datasets import Cityscapes, FashionMNIST

from ..info import DIGIT_NAMES, HALF, DatasetInfo, DenseRecipe
from .earth import CLASSES as EARTH

CITYSCAPES = tuple(kind.name for kind in Cityscapes.classes if not kind.ignore_in_eval)
FASHION = tuple(FashionMNIST.classes)
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)

_PASTED: dict[str, Any] = {"dense": DenseRecipe((128, 128), hflip=0.0, boxes=8), **HALF}
# mmsegmentation's settings for Cityscapes, which InfoPro's runs have too.
_JITTER = (0.125, 0.5, 0.5, 0.05)
_LARGE_SCALE = DenseRecipe((1024, 1024), scale=(0.1, 2.0))  # torchvision's "lsj"


def _info(label: str, names: tuple[str, ...], **more: Any) -> DatasetInfo:
    return DatasetInfo(label, len(names), class_names=names, **more)


DENSE: dict[str, dict[str, DatasetInfo]] = {
    "segmentation": {
        "pasted_digits": _info("pasted digits", ("ground", *DIGIT_NAMES), **_PASTED),
        "pasted_fashion": _info("pasted Fashion-MNIST", ("ground", *FASHION), **_PASTED),
        "earth": _info("the Earth", EARTH, dense=DenseRecipe((128, 128), scale=(1.0, 1.5))),
        "cityscapes": _info(
            "Cityscapes", CITYSCAPES,
            dense=DenseRecipe((512, 1024), (1024, 2048), (0.5, 2.0), jitter=_JITTER),
        ),
        "voc": _info(
            "Pascal VOC 2012", ("background", *VOC),
            dense=DenseRecipe((512, 512), scale=(0.5, 2.0), jitter=_JITTER),
        ),
        "ade20k": DatasetInfo(
            "ADE20K", 150,
            dense=DenseRecipe((512, 512), (683, 683), (0.5, 2.0), jitter=_JITTER),
        ),
    },
    "detection": {
        "pasted_digits": _info("pasted digits", DIGIT_NAMES, **_PASTED),
        "pasted_fashion": _info("pasted Fashion-MNIST", FASHION, **_PASTED),
        "voc": _info("Pascal VOC 2012", VOC, dense=_LARGE_SCALE),
        "coco": DatasetInfo("COCO", dense=_LARGE_SCALE),
    },
}  # fmt: skip

# The same pictures under their name for classification.
OF_CLASSIFICATION = {"digits": "pasted_digits", "fashion_mnist": "pasted_fashion"}
