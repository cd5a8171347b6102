"""Train a network block by block: ``accelerate launch recipes/train.py [-c FILE] [flags]``."""

import sys

from man_zoo.training.config import parse_args
from man_zoo.training.errors import exit_status
from man_zoo.training.train import train

if __name__ == "__main__":
    sys.exit(exit_status("train.py", lambda: train(parse_args())))
