"""Train a network block by block: ``accelerate launch recipes/train.py [-c FILE] [flags]``."""

import sys

from man_zoo.training.config import parse_args
from man_zoo.training.train import NonFiniteLoss, train


def main() -> int:
    try:
        train(parse_args())
    except (ValueError, FileNotFoundError, FileExistsError, NonFiniteLoss) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
