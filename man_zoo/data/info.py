"""How the data sets that have a name of their own are usually trained, and what loaders yield."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DenseRecipe:
    """How images with a class for every pixel or object are trained on: sizes are (height, width).

    An image is fitted into ``full``, its shape kept. Training then scales it at random, takes a
    random crop of ``size`` (padded where it is smaller), flips it and changes its colours;
    evaluation pads it to ``full``.

    Args:
        size: Of training images.
        full: Of whole images; ``None`` for ``size``.
        scale: The least and the greatest factor on both sides.
        hflip: Probability of a horizontal flip.
        jitter: Of brightness, contrast, saturation and hue, as torchvision's ``ColorJitter`` takes
            them.
        boxes: Rows of an image's target in detection.
    """

    size: tuple[int, int]
    full: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    boxes: int = 100


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
        dense: For segmentation and detection, in place of size, padding and flips.
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
    dense: DenseRecipe | None = None


@dataclass(frozen=True)
class LoaderInfo:
    """What the loaders yield.

    Args:
        name: Which data, and at which size.
        num_classes: Number of classes.
        class_names: In the order of the targets; empty where the data do not say.
        mean: One value a channel, for pixels scaled to [0, 1].
        std: The same.
        input_size: Channels, height and width.
        interpolation: Of evaluation, in timm's words.
        crop_pct: Of evaluation, in timm's words.
        crop_mode: Of evaluation, in timm's words.
        in_memory: Whether images were decoded once and for all.
        train_count: Training images.
        val_count: Evaluation images.
        task: What is learnt of an image.
        full_size: Height and width of evaluation images, in segmentation and detection.
        boxes: Rows of a target, in detection.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    in_memory: bool
    train_count: int
    val_count: int
    task: str = "classification"
    full_size: tuple[int, int] | None = None
    boxes: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """One a class: its number where the data do not say."""
        return (*self.class_names, *map(str, range(len(self.class_names), self.num_classes)))


_CIFAR: dict[str, Any] = {
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
    "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "size": 32,
    "padding": 4,
}
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
DIGIT_NAMES = tuple("0123456789")

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        "scikit-learn digits (8x8 scans)", 10, **HALF, size=16, padding=2, hflip=0.0,
        class_names=DIGIT_NAMES,
    ),
    "cifar10": DatasetInfo("CIFAR-10", 10, **_CIFAR),
    "cifar100": DatasetInfo("CIFAR-100", 100, **_CIFAR),
    "svhn": DatasetInfo(
        "SVHN", 10, **HALF, size=32, padding=2, hflip=0.0, class_names=DIGIT_NAMES
    ),
    "stl10": DatasetInfo("STL-10", 10, **HALF, size=96, padding=4),
    "fashion_mnist": DatasetInfo("Fashion-MNIST", 10, **HALF, size=28, padding=2),
}  # fmt: skip
