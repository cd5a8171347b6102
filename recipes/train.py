"""Train a network block by block: ``accelerate launch recipes/train.py [-c FILE] [flags]``."""

import os
import sys

from man_zoo.training.config import parse_args
from man_zoo.training.errors import UserError
from man_zoo.training.train import train


def main() -> int:
    try:
        train(parse_args())
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every process meets the same error
            print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
