"""The ``man-zoo`` command."""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..console import Parser, UserError, exit_status
from ..messages import unknown

COMMANDS = {
    "train": "train a network block by block, or end to end, and export its backbone",
    "finetune": "train from weights of the zoo or the Hub",
    "evaluate": "accuracy of weights on a data set",
    "benchmark": "time, memory and arithmetic of models beside end to end",
    "analyse": "look into trained networks, block by block",
    "curves": "draw how runs went",
    "sweep": "train a list of runs",
    "plan": "memory and arithmetic of a split; the best one for a memory budget",
    "check-planner": "the planner against the meter on random training steps",
    "list": "names of the zoo",
    "export": "write a run's backbone in timm's hub format",
    "push": "publish an exported folder on the Hub",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 1 after one sentence if it cannot do what was asked."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        # Not before it is known which: some commands take seconds to import.
        command = import_module(f".{words[0].replace('-', '_')}", __package__)
        return command.main(words[1:], f"man-zoo {words[0]}")
    return exit_status("man-zoo", lambda: _help(words))


def _help(words: Sequence[str]) -> None:
    listed = "\n".join(f"  {name:<13} {about}" for name, about in COMMANDS.items())
    parser = Parser(
        prog="man-zoo",
        usage="man-zoo COMMAND ... | --help | --version",
        description="Local learning with timm models.",
        epilog=f"commands, each with a --help of its own:\n{listed}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"man-zoo {__version__}")
    if words and not words[0].startswith("-"):
        raise UserError(str(unknown("command", words[0], COMMANDS)))
    parser.parse_args(words or ["--help"])


if __name__ == "__main__":
    sys.exit(main())
