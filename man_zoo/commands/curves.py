"""``man-zoo curves RUN...``: how runs went, epoch by epoch, in one picture."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..analysis.curve_pictures import draw_curves
from ..analysis.curves import AXES, read_curves, render
from ..console import Parser, exit_status, output_file

PICTURE = "curves.png"


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program,
        description="Draw losses, gradients, accuracy and throughput of runs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders, finished or not")
    add("--picture", type=output_file, metavar="FILE",
        help=f"default: {PICTURE} in the run; of several runs, here")  # fmt: skip
    add("--x", choices=AXES, default="epoch", help="what runs from left to right (default epoch)")
    return parser


def run(args: Namespace) -> None:
    """Draw, and print how the runs stand.

    Raises:
        UserError: As :func:`~man_zoo.analysis.curves.read_curves`.
    """
    runs = read_curves(args.runs)
    picture = args.picture or (args.runs[0] if len(runs) == 1 else Path()) / PICTURE
    draw_curves(runs, picture, args.x)
    print(f"{render(runs)}\n\npicture: {picture}")


def main(argv: Sequence[str] | None = None, program: str = "man-zoo curves") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
