"""Evaluate weights on a data set: ``python recipes/evaluate.py MODEL [flags]``."""

import sys

from man_zoo.training.errors import UserError
from man_zoo.training.scores import parse_args, score


def main() -> int:
    try:
        score(parse_args())
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
