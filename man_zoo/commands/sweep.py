"""``man-zoo sweep FILE``: a list of runs, one after another or side by side."""

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..console import Parser, exit_status
from ..console.numbers import positive
from ..results.sweep import sweep
from ..runs.recipes import find_sweep


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command's own."""
    parser = Parser(
        prog=program,
        description="Train a list of runs and collect their results.",
        epilog="Further flags go to every run, e.g. --data-dir DIR.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("sweep", type=find_sweep, metavar="FILE", help="YAML: results, over, runs; a file, or the "
        "name of a sweep that comes with the library")  # fmt: skip
    add("--output", type=Path, default=Path("runs"), metavar="DIR", help="of the run folders")
    add("--jobs", type=positive, default=1, metavar="N", help="runs at a time, on shared cores")
    add("--missing", action="store_true", help="leave out runs that the results file has a line "
        "of, e.g. those of a clone")  # fmt: skip
    add("--launch", default=shlex.quote(sys.executable), metavar="COMMAND", help="what starts a "
        "run: python, or e.g. 'accelerate launch --num_processes 8'")  # fmt: skip
    return parser


def parse_args(argv: Sequence[str] | None = None, program: str = "man-zoo sweep") -> Namespace:
    """Flags of the command; those that it does not know are for every run (``flags``).

    Raises:
        UserError: For flags that are not understood.
    """
    known, flags = build_parser(program).parse_known_args(argv)
    return Namespace(**vars(known), flags=flags)


def main(argv: Sequence[str] | None = None, program: str = "man-zoo sweep") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: sweep(parse_args(argv, program)))


if __name__ == "__main__":
    sys.exit(main())
