"""Time of a step, and the CUDA allocator's peak, measured on the device itself."""

import gc
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from ..training.compile import compile_blocks
from .candidates import Candidate
from .step import memory_batch, train_here

# The first step makes the optimizer's state and compiles, the second compiles what that changed.
WARM_UP = 2


def cuda_peak_gib(candidate: Candidate, args: Namespace, device: torch.device) -> float:
    """The CUDA allocator's peak over a steady step, of this model alone, in GiB."""
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    training = train_here(candidate, args, memory_batch(args), device)
    if candidate.compiled:
        compile_blocks(training.blocks)
    for _ in range(WARM_UP):
        training.step()
    torch.cuda.reset_peak_memory_stats(device)
    training.step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def time_steps(
    candidates: Sequence[Candidate], args: Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every timed step of every candidate; the candidates take turns."""
    trainings = {one.name: train_here(one, args, args.batch_size, device) for one in candidates}
    # In one go: all blocks share one limit of compiled variants, which goes by their number.
    compile_blocks([b for one in candidates if one.compiled for b in trainings[one.name].blocks])
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    with tqdm(total=(WARM_UP + args.steps) * len(trainings), unit="step", leave=False) as bar:
        for _ in range(WARM_UP + args.steps):
            for name, training in trainings.items():
                bar.set_description(f"time: {name}")
                seconds[name].append(_seconds(training.step, device))
                bar.update()
    return {name: times[WARM_UP:] for name, times in seconds.items()}


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
