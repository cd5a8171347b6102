"""What the tests of data share: flags, a process's place among others, folders of noise."""

from argparse import ArgumentParser
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from man_zoo.data import add_data_args, create_loaders


def parse(*flags, seed=0):
    parser = ArgumentParser()
    add_data_args(parser)
    args = parser.parse_args([str(flag) for flag in flags])
    args.seed = seed
    return args


def state(rank=0, world_size=1):
    """What the loaders read of an ``accelerate.PartialState``."""
    return SimpleNamespace(
        process_index=rank,
        num_processes=world_size,
        device=torch.device("cpu"),
        is_main_process=rank == 0,
        wait_for_everyone=lambda: None,
    )


def loaders(*flags, rank=0, world_size=1, **keywords):
    return create_loaders(parse(*flags), state(rank, world_size), **keywords)


def write_images(root, count=10, size=24, classes=("cat", "dog"), mode="RGB"):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            shape = (size, size, 3) if mode == "RGB" else (size, size)
            pixels = np.random.default_rng([number, index]).integers(0, 256, shape)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / name / f"{index}.png")
