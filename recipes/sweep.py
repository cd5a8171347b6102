"""A list of runs, one after another or side by side: ``python recipes/sweep.py FILE [flags]``."""

import sys
from pathlib import Path

from man_zoo.results.sweep import parse_args, sweep
from man_zoo.training.errors import exit_status

if __name__ == "__main__":
    recipe = Path(__file__).with_name("train.py")
    sys.exit(exit_status("sweep.py", lambda: sweep(parse_args(), recipe)))
