"""What the tests of the training recipe share: a tiny data set, and the recipe as a process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from man_zoo.commands.train import train_and_export
from man_zoo.runs.config import parse_args

ROOT = Path(__file__).parents[1]
CLASSES = 3


def write_images(folder: Path, train: int = 24, val: int = 10) -> Path:
    """A folder data set of noise, 8 x 8 pixels, ``CLASSES`` classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", val)):
        for i in range(count):
            path = folder / split / f"class{i % CLASSES}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return folder


def flags(data: Path, output: Path, *more: str) -> list[str]:
    """Flags of a run that takes a second: ``output/run``, on the data of :func:`write_images`."""
    return [
        *("--dataset", "folder", "--data-dir", str(data), "--img-size", "8", "--batch-size", "4"),
        *("--model", "resnet20_man_dgl_k4", "--model-kwargs", "head=narrow", "--cpu-threads", "1"),
        *("--output", str(output), "--experiment", "run", "--epochs", "1"),
        *("--warmup-epochs", "0", *more),
    ]


def processes(count: int) -> tuple[str, ...]:
    """What comes before a script that so many processes run, as under torchrun."""
    return str(ROOT / "tests" / "several.py"), str(count)


def python(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run ``python`` in a process of its own, on the CPU."""
    result = subprocess.run(
        [sys.executable, *words],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and result.returncode:
        raise AssertionError(result.stdout + result.stderr)
    return result


def environment() -> dict[str, str]:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return os.environ | {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def train_here(*words: str) -> dict:
    """Run the recipe in this process, which costs no start-up; its summary."""
    GradientState._reset_state()
    AcceleratorState._reset_state(True)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    threads = torch.get_num_threads()
    try:
        return train_and_export(parse_args(words))
    finally:
        torch.set_num_threads(threads)
        del os.environ["ACCELERATE_USE_CPU"]
