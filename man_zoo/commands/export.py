"""``man-zoo export RUN``: a run's backbone in timm's hub format, with its model card."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..console import Parser, exit_status
from ..hub.export import export_run, usage
from ..hub.index import add_to_index
from ..runs.folder import EXPORT, check_links
from ..runs.lock import hold


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program,
        description="Write a run's backbone in timm's hub format, with its model card.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of the training recipe")
    add("-o", "--output", type=Path, metavar="FOLDER", help="default: RUN/export")
    add("--checkpoint", default="last", help="last (default), best, or a name such as epoch-0007")
    add("--ema", action="store_true", help="the moving average of the weights (--model-ema)")
    add("--tag", help="name of the weights after the model's; default: the data set")
    add("--force", action="store_true", help="replace a folder of an earlier export")
    add("--index", action="store_true", help="also put it into this checkout's hub/")
    return parser


def run(args: Namespace) -> None:
    """Export, and print how to load it.

    Raises:
        UserError: As :func:`man_zoo.hub.export.export_run`; if another process is in the run, or
            writes the folder.
    """
    folder = args.output or args.run / EXPORT
    inside = args.run.resolve() in folder.resolve().parents
    with hold(args.run if inside else folder):
        if inside:
            check_links(args.run)
        export_run(
            args.run,
            folder,
            checkpoint=args.checkpoint,
            ema=args.ema,
            tag=args.tag,
            force=args.force,
        )
    print(f"{folder}\n\n{usage(folder)}")
    if args.index:
        weights = add_to_index(folder)
        print(f"\nin the index as {weights.title}: {weights.folder}")


def main(argv: Sequence[str] | None = None, program: str = "man-zoo export") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
