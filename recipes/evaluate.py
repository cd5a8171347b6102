"""Evaluate weights on a data set: ``python recipes/evaluate.py MODEL [flags]``."""

import sys

from man_zoo.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main(program="evaluate.py"))
