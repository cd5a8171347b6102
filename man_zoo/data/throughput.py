"""How many images a second a loader yields."""

import time
from collections.abc import Iterator
from itertools import count, islice

import torch
from torch import Tensor

from .memory_loader import MemoryLoader
from .stream_loader import StreamLoader


def throughput(loader: MemoryLoader | StreamLoader, seconds: float = 2.0) -> float:
    """Images per second, measured over about ``seconds`` after three batches."""
    batches = _cycle_epochs(loader)
    for _ in islice(batches, 3):
        pass
    seen, start = 0, time.perf_counter()
    for images, _ in batches:
        seen += len(images)
        if time.perf_counter() - start > seconds:
            break
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return seen / (time.perf_counter() - start)


def _cycle_epochs(loader: MemoryLoader | StreamLoader) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader
