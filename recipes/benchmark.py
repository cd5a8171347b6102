"""Time, memory and arithmetic of zoo models beside end to end: ``python recipes/benchmark.py``."""

import sys

from man_zoo.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main(program="benchmark.py"))
