"""``man-zoo check-planner``: the planner against the meter on random training steps."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from tqdm import tqdm

from ..benchmark.planner_check import LIMIT, check_all, page, render
from ..console import Parser, UserError, exit_status, output_file, write_text
from ..console.numbers import non_negative, positive


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program,
        description="Plan random training steps, run them on fake tensors, and compare the peaks. "
        f"Ends with status 1 if one is off by more than {LIMIT:.0%}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--count", type=positive, default=40, metavar="N", help="how many steps")
    add("--seed", type=non_negative, default=0, help="of the choices")
    add("--page", type=output_file, metavar="FILE", help="write the table as a Markdown page")
    return parser


def run(args: Namespace) -> None:
    """Check, print the table, write the page.

    Raises:
        UserError: If a plan is too far from its step.
    """
    with tqdm(total=args.count, desc="planner", unit="step", leave=False, disable=None) as bar:
        outcomes = check_all(args.count, args.seed, bar.update)
    print(render(outcomes))
    if args.page:
        command = f"man-zoo check-planner --count {args.count} --seed {args.seed}"
        write_text(args.page, page(outcomes, command))
    off = [outcome for outcome in outcomes if abs(outcome.deviation) > LIMIT]
    if off:
        raise UserError(f"{len(off)} of {len(outcomes)} plans are off by more than {LIMIT:.0%}.")


def main(argv: Sequence[str] | None = None, program: str = "man-zoo check-planner") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
