"""Describe the data that the flags name and measure both loaders."""

from argparse import ArgumentParser

from accelerate import PartialState

from .flags import add_data_args
from .loaders import create_loaders
from .throughput import throughput


def main() -> None:
    parser = ArgumentParser(prog="python -m man_zoo.data", description=__doc__)
    add_data_args(parser)
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    train, val, info = create_loaders(parser.parse_args(), PartialState())
    print(info)
    print(f"train: {throughput(train):,.0f} images/s")
    print(f"val: {throughput(val):,.0f} images/s")


if __name__ == "__main__":
    main()
