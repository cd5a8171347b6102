"""Random numbers that hang on where they are drawn, and on nothing that was drawn before.

A block's dropout and drop path are the same whichever process trains it, and however many blocks
that process has trained before.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def drawn_from(*key: int, device: torch.device) -> Iterator[None]:
    """Within, torch's random numbers follow from ``key`` alone; after it they go on as before.

    Args:
        key: E.g. seed, step and block, none of them negative.
        device: Where numbers are drawn, beside the CPU.
    """
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
