"""Train a network block by block: ``accelerate launch recipes/train.py [-c FILE] [flags]``."""

import sys

from man_zoo.commands.train import main

if __name__ == "__main__":
    sys.exit(main(program="train.py"))
