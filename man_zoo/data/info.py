"""How the data sets that have a name of their own are usually trained."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetInfo:
    """How a data set is usually trained: sizes in pixels, mean and std for pixels in [0, 1].

    Args:
        label: What tables and cards call the data set.
        num_classes: ``None`` where only the files tell.
        mean: One value a channel; ``None`` for the model's.
        std: The same.
        size: Of the square image; ``None`` where only the files tell.
        padding: On each side before the random crop; ``None`` where no pad-and-crop recipe
            applies and timm's random resized crop is used.
        padding_mode: ``"reflect"`` or ``"constant"`` (black).
        hflip: Probability of a horizontal flip.
        class_names: Empty where the data tell.
    """

    label: str
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    padding: int | None = None
    padding_mode: str = "reflect"
    hflip: float = 0.5
    class_names: tuple[str, ...] = ()


_CIFAR: dict[str, Any] = {
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
    "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "size": 32,
    "padding": 4,
}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_DIGIT_NAMES = tuple("0123456789")

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        "scikit-learn digits (8x8 scans)", 10, **_HALF, size=16, padding=2, hflip=0.0,
        class_names=_DIGIT_NAMES,
    ),
    "cifar10": DatasetInfo("CIFAR-10", 10, **_CIFAR),
    "cifar100": DatasetInfo("CIFAR-100", 100, **_CIFAR),
    "svhn": DatasetInfo(
        "SVHN", 10, **_HALF, size=32, padding=2, hflip=0.0, class_names=_DIGIT_NAMES
    ),
    "stl10": DatasetInfo("STL-10", 10, **_HALF, size=96, padding=4),
    "fashion_mnist": DatasetInfo("Fashion-MNIST", 10, **_HALF, size=28, padding=2),
}  # fmt: skip
