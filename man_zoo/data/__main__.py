"""Describe the data that the flags name and measure both loaders."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from ..console import Parser, UserError, exit_status, output_file, user_errors
from ..console.numbers import seed
from ..tasks import TASKS
from ..tasks.pictures import save_picture
from .flags import add_data_args
from .info import LoaderInfo
from .loaders import create_loaders
from .memory_loader import MemoryLoader
from .stream_loader import StreamLoader
from .throughput import throughput

_SHOWN = 8  # images of a picture


def parse_args(argv: Sequence[str] | None, program: str) -> Namespace:
    """Flags of the data.

    Raises:
        UserError: For flags that are not understood.
    """
    parser = Parser(prog=program, description=__doc__, allow_abbrev=False)
    add_data_args(parser)
    parser.add_argument("--seed", type=seed, default=0, help="default: 0")
    parser.add_argument("--picture", type=output_file, metavar="FILE",
        help="a PNG of training images and their masks or boxes")  # fmt: skip
    return parser.parse_args(argv)


def describe(args: Namespace) -> None:
    """Print what the loaders yield, and how fast.

    Raises:
        UserError: For data that are not there or cannot be used as asked.
    """
    with user_errors():
        train, val, info = create_loaders(args, PartialState())
    print(info)
    if args.picture:
        draw(args.picture, train, info)
    print(f"train: {throughput(train):,.0f} images/s")
    print(f"val: {throughput(val):,.0f} images/s")


def draw(path: Path, loader: MemoryLoader | StreamLoader, info: LoaderInfo) -> None:
    """Draw the first training images as a network sees them, with what is known of them.

    Raises:
        UserError: If all that is known is a class.
    """
    drawn = TASKS[info.task].draw
    if drawn is None:
        raise UserError("--picture is for segmentation and detection; expected --task of these.")
    images, target = (batch[:_SHOWN] for batch in next(iter(loader)))
    save_picture(drawn(images, [target], info.names, info.mean, info.std), path)


def main(argv: Sequence[str] | None = None, program: str = "python -m man_zoo.data") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: describe(parse_args(argv, program)))


if __name__ == "__main__":
    sys.exit(main())
