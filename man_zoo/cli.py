"""The ``man-zoo`` command; each subcommand stands beside the code that it runs."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from .hub.export import add_export
from .hub.push import add_push
from .planner.command import add_plan
from .registry import add_list
from .training.errors import exit_status

COMMANDS = (add_list, add_plan, add_export, add_push)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 1 after one sentence if it cannot do what was asked."""
    parser = ArgumentParser(prog="man-zoo", description="Local learning with timm models.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(subparsers)
    args = parser.parse_args(argv)
    return exit_status("man-zoo", lambda: args.command(args))


if __name__ == "__main__":
    sys.exit(main())
