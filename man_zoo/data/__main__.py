"""Describe the data that the flags name and measure both loaders."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from accelerate import PartialState

from ..console import Parser, exit_status, user_errors
from ..console.numbers import seed
from .flags import add_data_args
from .loaders import create_loaders
from .throughput import throughput


def parse_args(argv: Sequence[str] | None, program: str) -> Namespace:
    """Flags of the data.

    Raises:
        UserError: For flags that are not understood.
    """
    parser = Parser(prog=program, description=__doc__, allow_abbrev=False)
    add_data_args(parser)
    parser.add_argument("--seed", type=seed, default=0, help="default: 0")
    return parser.parse_args(argv)


def describe(args: Namespace) -> None:
    """Print what the loaders yield, and how fast.

    Raises:
        UserError: For data that are not there or cannot be used as asked.
    """
    with user_errors():
        train, val, info = create_loaders(args, PartialState())
    print(info)
    print(f"train: {throughput(train):,.0f} images/s")
    print(f"val: {throughput(val):,.0f} images/s")


def main(argv: Sequence[str] | None = None, program: str = "python -m man_zoo.data") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: describe(parse_args(argv, program)))


if __name__ == "__main__":
    sys.exit(main())
