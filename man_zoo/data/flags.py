"""Every flag about data and augmentation, under the names of timm's train.py."""

from argparse import ArgumentParser

from ..console.numbers import (
    finite,
    fraction,
    image_size,
    non_negative,
    non_negative_number,
    positive,
    positive_number,
    probability,
)
from .dense import DENSE
from .info import DATASETS
from .loaders import SMALL_SIDE
from .sources import TIMM_PREFIXES
from .transforms import PIL_MODES


def add_data_args(parser: ArgumentParser) -> None:
    """Add every data flag, in one titled group, under the names of timm's train.py."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--task", choices=("classification", *DENSE), default="classification",
        help="what is learnt of an image (default: its class)")  # fmt: skip
    names = ", ".join([*DATASETS, "folder", *(p + "NAME" for p in TIMM_PREFIXES)])
    dense = "".join(f"; for {task} {', '.join(known)}" for task, known in DENSE.items())
    add("--dataset", default="digits", metavar="NAME",
        help=f"one of {names}{dense} (default: digits; of a dense task, pasted ones)")  # fmt: skip
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="where the data set is, or is downloaded to; for a folder, the parent of train/ and "
        "test/ or of train.tar and test.tar (default: data)",
    )
    add("--download", action="store_true", help="download the data set if it is not in DIR")
    add("--data-label", metavar="TEXT", help="what tables and cards call the data set")
    add("--train-split", metavar="NAME", help="default: train")
    add("--val-split", metavar="NAME", help="default: validation, or a folder's val or test")
    add(
        "--train-subset", type=positive, metavar="N", help="train on N images, always the same ones"
    )
    add(
        "--train-num-samples",
        type=positive,
        metavar="N",
        help="images, where a stream cannot tell, or of pasted scenes",
    )
    add("--val-num-samples", type=positive, metavar="N", help="the same, to validate on")
    add("--val-holdout", type=positive, metavar="N", help="validate on N training images that are "
        "held out, always the same ones; the test split is looked at once, at the end")  # fmt: skip
    add("--skip-bad-images", action="store_true", help="leave out images that cannot be read and "
        "count them, where the first of them would end the run")  # fmt: skip
    add("--class-map", metavar="FILE", help="class name to index, as timm reads it")
    add("--input-key", metavar="KEY", help="image column of an hfds, hfids, tfds or wds data set")
    add("--target-key", metavar="KEY", help="label column of an hfds, hfids, tfds or wds data set")
    add("--num-classes", type=positive, metavar="N", help="default: the data set's own")
    add("--img-size", type=image_size, metavar="PX", help="one number, or height and width as "
        "512x1024 (default: the data set's own, else the model's)")  # fmt: skip
    add("--full-size", type=image_size, metavar="PX", help="size that whole images are fitted into "
        "for evaluation and before a random crop, for segmentation and detection (default: the "
        "data set's own, else --img-size)")  # fmt: skip
    add("--input-size", type=positive, nargs=3, metavar="N", help="channels height width")
    add("--in-chans", type=int, choices=PIL_MODES, help="1 keeps or makes images grey (default 3)")
    add("--mean", type=finite, nargs="+", metavar="X", help="default: the data set's own")
    add("--std", type=positive_number, nargs="+", metavar="X", help="default: the data set's own")
    add("--interpolation", metavar="NAME", help="resizing for evaluation and for decoding")
    add("--crop-pct", type=fraction, metavar="X", help="centre crop of streamed evaluation images")
    add(
        "-b",
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="training images a step and process (default: 64)",
    )
    add("-vb", "--validation-batch-size", type=positive, metavar="N", help="default: --batch-size")
    add(
        "--in-memory",
        choices=("auto", "on", "off"),
        default="auto",
        help="decode once and augment on the device: pad, crop and flip only "
        f"(default: auto, for images of {SMALL_SIDE} px or less)",
    )
    add(
        "-j",
        "--workers",
        type=non_negative,
        default=4,
        metavar="N",
        help="processes a loader (default 4)",
    )

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--no-aug", action="store_true", help="train on plain images")
    add(
        "--crop-padding",
        type=non_negative,
        metavar="PX",
        help="padding before the random crop (default: the data set's own, else size / 8)",
    )
    add("--padding-mode", choices=("reflect", "constant"), help="default: the data set's own")
    add("--hflip", type=probability, metavar="P", help="default: the data set's own, else 0.5")
    add("--vflip", type=probability, metavar="P", help="streamed only (default: 0)")
    add(
        "--scale",
        type=fraction,
        nargs=2,
        metavar="X",
        help="area of the random resized crop, streamed only (default: 0.08 1)",
    )
    add(
        "--ratio",
        type=positive_number,
        nargs=2,
        metavar="X",
        help="shape of the random resized crop, streamed only (default: 3/4 4/3)",
    )
    add("--scale-jitter", type=positive_number, nargs=2, metavar="X", help="factors on the sides "
        "of an image, least and greatest, before its random crop, for segmentation and detection "
        "(default: the data set's own)")  # fmt: skip
    add(
        "--color-jitter",
        type=non_negative_number,
        metavar="X",
        help="streamed only (default: timm's 0.4 with the random resized crop, else none)",
    )
    add("--aa", metavar="POLICY", help="timm AutoAugment policy, streamed only")
    add(
        "--reprob", type=probability, metavar="P", help="random erasing, streamed only (default: 0)"
    )
    add(
        "--remode",
        choices=("const", "rand", "pixel"),
        default="pixel",
        help="random erasing fill (default: pixel)",
    )
    add(
        "--recount", type=positive, default=1, metavar="N", help="random erasing areas (default: 1)"
    )
    add(
        "--train-interpolation",
        default="random",
        metavar="NAME",
        help="of the random resized crop (default: random)",
    )
