"""Time, memory and arithmetic of zoo models beside end to end: ``python recipes/benchmark.py``."""

import json
import sys

from man_zoo.benchmark import benchmark, build_parser, render
from man_zoo.training.errors import exit_status


def main() -> None:
    args = build_parser().parse_args()
    report = benchmark(args)
    print(render(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_status("benchmark.py", main))
