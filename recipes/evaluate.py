"""Evaluate weights on a data set: ``python recipes/evaluate.py MODEL [flags]``."""

import sys

from man_zoo.training.errors import exit_status
from man_zoo.training.scores import parse_args, score

if __name__ == "__main__":
    sys.exit(exit_status("evaluate.py", lambda: score(parse_args())))
