"""Time, memory and arithmetic of zoo models beside end to end: ``python recipes/benchmark.py``."""

import json
import sys

from man_zoo.benchmark import benchmark, build_parser, render
from man_zoo.training.errors import UserError


def main() -> int:
    args = build_parser().parse_args()
    try:
        report = benchmark(args)
    except UserError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1
    print(render(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
