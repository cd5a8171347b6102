"""``man-zoo list``: the names of the zoo."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import timm

from ..console import Parser, exit_status
from ..spec import is_zoo_name
from ..weights import read_index


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(prog=program, description="Names of the zoo.", allow_abbrev=False)
    add = parser.add_argument
    add("filter", nargs="?", default="", metavar="FILTER", help="such as 'resnet32_man_*'")
    add("--pretrained", action="store_true", help="weights that can be loaded, with their top-1")
    return parser


def run(args: Namespace) -> None:
    """Print names, one a line.

    Raises:
        UserError: If the index of weights cannot be read.
    """
    index = read_index() if args.pretrained else {}
    for name in timm.list_models(args.filter, pretrained=args.pretrained):
        if args.pretrained and name in index:
            weights = index[name]
            print(f"{name}  {weights.metrics['top1']:.2f} %  {weights.repository or 'here'}")
        elif not args.pretrained and is_zoo_name(name):
            print(name)


def main(argv: Sequence[str] | None = None, program: str = "man-zoo list") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
