"""A list of runs, one after another or side by side: ``python recipes/sweep.py FILE [flags]``."""

import sys

from man_zoo.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main(program="sweep.py"))
