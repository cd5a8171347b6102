"""One thread a test: two that wait for each other on tiny tensors take many times longer."""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Before every test, because what a test runs may ask for all cores."""
    torch.set_num_threads(1)
