"""One thread a test: two that wait for each other on tiny tensors take many times longer."""

import os

import pytest
import torch

# For what tests start: one thread, as if as many processes as there are cores shared the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["LOCAL_WORLD_SIZE"] = str(os.cpu_count())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Before every test, because what a test runs may ask for all cores."""
    torch.set_num_threads(1)
