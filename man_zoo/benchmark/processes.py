"""One model trained in several ways, which take turns: what processes of one machine are worth.

In one process with one thread; in one with as many threads as there are processes; in data
parallel, each process with its share of the batch, where a block's gradients are averaged as DDP
does it and while the next block runs; and block-parallel. Times are of a step in the steady state:
of some consecutive steps those are left out in which a pipeline fills and empties.
"""

import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from tqdm import tqdm

from ..console import table, user_errors
from ..local_model import LocalModel
from ..meter import LiveBytes
from ..parallel.block_parallel import BlockParallel
from ..parallel.data_parallel import PlainReplica, Replica, average_gradients
from ..planner import place
from ..planner.optimizer import create_optimizer
from ..planner.sizes import MIB
from ..runs.metadata import machine
from .candidates import Candidate, parse_candidate
from .report import above_settings, settings
from .step import build, in_precision, noise, setting_of

STEPS = 9  # consecutive ones, of which these are not timed:
FILLS, EMPTIES = 2, 1
CPU = torch.device("cpu")


@dataclass
class Way:
    """One way to train, in this process.

    Args:
        run: Trains so many steps, and gives the seconds of one.
        tells: Whether this process's seconds are the way's.
        resident: What the meter counts from the beginning; empty where the process has no part.
        threads: Of this process meanwhile.
    """

    run: Callable[[int], float]
    tells: bool
    resident: list[Any]
    threads: int = 1


def compare_processes(args: Namespace) -> dict[str, Any]:
    """Measure as the flags say: ``machine``, ``settings`` and ``results``, a dict for each way.

    Raises:
        UserError: For a model that cannot be built or divided so, or flags that do not go together.
    """
    with user_errors():
        candidate = _check(args)
        ranges = _ranges(args, candidate)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (args, candidate, ranges, folder), args.block_parallel)
        results = json.loads((Path(folder) / "results.json").read_text())
    return {"machine": machine(CPU), "settings": settings(args), "results": results}


def _ranges(args: Namespace, candidate: Candidate) -> Sequence[range]:
    """The blocks of each process, by seconds of one thread: that is what each of them has."""
    torch.set_num_threads(1)
    model = _model(args, candidate)
    setting = setting_of(args, args.batch_size, "cpu")
    return place(model, setting, args.block_parallel, calibrate=True).ranges


def _check(args: Namespace) -> Candidate:
    """The model.

    Raises:
        ValueError: For flags that do not go together.
    """
    if len(args.models) != 1 or args.compile or args.device not in (None, "cpu"):
        raise ValueError("--block-parallel compares one model with itself, eager, on the CPU.")
    if args.micro_batches > 1:
        raise ValueError("--block-parallel compares whole batches; drop --micro-batches.")
    if not args.time:
        raise ValueError("--block-parallel is about time and --no-time leaves it out; drop one.")
    if args.grad_accum_steps > 1 or args.model_ema:
        raise ValueError(
            "--block-parallel compares steps of one batch, without an average of the weights; drop "
            "--grad-accum-steps and --model-ema."
        )
    if args.memory_batch_size or args.cpu_threads:
        raise ValueError(
            "--block-parallel meters the batch that it times, and a process has one thread; drop "
            "--memory-batch-size and --cpu-threads."
        )
    if args.batch_size % args.block_parallel:
        raise ValueError(
            f"--batch-size {args.batch_size} does not divide by {args.block_parallel}, so data "
            "parallel has no equal shares; use a multiple."
        )
    return parse_candidate(args.models[0], dict(args.model_kwargs))


def _work(
    rank: int, args: Namespace, candidate: Candidate, ranges: Sequence[range], folder: str
) -> None:
    """What each process does: all ways in turn, round by round."""
    count = args.block_parallel
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    whole, share = f"batch {args.batch_size}", f"batch {args.batch_size // count} each"
    one_thread = f"1 process, 1 thread, {whole}"
    ways = {
        one_thread: _alone(rank, args, candidate),
        f"1 process, {count} threads, {whole}": _alone(rank, args, candidate, count),
        f"{count} processes, DDP, {share}": _data(args, candidate, PlainReplica),
        f"{count} processes, data parallel, {share}": _data(args, candidate, Replica),
        f"{count} processes, block-parallel, {whole}": _blocks(args, candidate, ranges),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = {name: _peak(way) for name, way in ways.items()}
    with tqdm(total=args.steps * len(ways), unit="round", disable=rank > 0, leave=False) as bar:
        for _ in range(args.steps):
            for name, way in ways.items():
                bar.set_description(name)
                torch.set_num_threads(way.threads)
                dist.barrier()
                seconds[name].append(way.run(STEPS))
                bar.update()
    everyone: list = [None] * count
    own = {name: seconds[name] for name, way in ways.items() if way.tells}
    dist.all_gather_object(everyone, (own, peaks))
    if rank == 0:
        results = _results(args, one_thread, everyone)
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def _results(args: Namespace, baseline: str, everyone: list) -> list[dict[str, Any]]:
    seconds = {name: own for told, _ in everyone for name, own in told.items()}
    ratios = {
        name: median(a / b for a, b in zip(seconds[baseline], own, strict=True))
        for name, own in seconds.items()
    }
    return [
        {
            "way": name,
            "seconds": seconds[name],
            "images_per_second": args.batch_size / median(seconds[name]),
            "speed_up": ratios[name],
            "peak_mib": [peaks[name] / MIB for _, peaks in everyone if peaks[name]],
        }
        for name in everyone[0][1]
    ]


def _peak(way: Way) -> int:
    """Most bytes alive in this process in a step, after one that warms up."""
    dist.barrier()
    torch.set_num_threads(way.threads)
    way.run(1)
    if not way.resident:
        return 0
    with LiveBytes().track(*way.resident) as meter:
        way.run(1)
    return meter.peak


def _alone(rank: int, args: Namespace, candidate: Candidate, threads: int = 1) -> Way:
    if rank:  # waits meanwhile
        return Way(lambda steps: 0.0, tells=False, resident=[])
    return _way(_whole(args, candidate), args, args.batch_size, tells=True, threads=threads)


def _data(args: Namespace, candidate: Candidate, replica: type[PlainReplica | Replica]) -> Way:
    parallel = _whole(args, candidate)
    replicas = [replica(block) for block in parallel.blocks]
    batch_size = args.batch_size // args.block_parallel
    return _way(parallel, args, batch_size, tells=dist.get_rank() == 0, replicas=replicas)


def _blocks(args: Namespace, candidate: Candidate, ranges: Sequence[range]) -> Way:
    parallel = BlockParallel(_model(args, candidate), ranges)
    return _way(parallel, args, args.batch_size, tells=parallel.is_last)


def _whole(args: Namespace, candidate: Candidate) -> BlockParallel:
    model = _model(args, candidate)
    return BlockParallel(model, [range(len(model.blocks))])


def _model(args: Namespace, candidate: Candidate) -> LocalModel:
    torch.manual_seed(0)  # equal weights in every process
    return build(candidate, args, CPU)


def _way(
    parallel: BlockParallel,
    args: Namespace,
    batch_size: int,
    *,
    tells: bool,
    replicas: Sequence[PlainReplica] = (),
    threads: int = 1,
) -> Way:
    """Steps on a batch of noise, each block by an optimizer of its own."""
    setting = setting_of(args, batch_size, "cpu")
    optimizers = [create_optimizer(b, setting.opt, {}, "cpu") for b in parallel.blocks]
    batch = noise(parallel.model, setting) if parallel.is_first else None
    blocks = in_precision(replicas or parallel.blocks, setting, "cpu")
    late = any(isinstance(block, Replica) for block in replicas)

    def step(j: int) -> None:
        if replicas:
            average_gradients(replicas[j])
        optimizers[j].step()
        optimizers[j].zero_grad()

    def run(steps: int) -> float:
        ends = []
        for features, target in parallel.batches([batch] * steps if batch else [], steps):
            parallel.step(features, target, blocks=blocks, step=step, late=late)
            ends.append(time.perf_counter())
        parallel.finish()
        timed = ends[FILLS - 1 : steps - EMPTIES]
        return (timed[-1] - timed[0]) / (len(timed) - 1) if len(timed) > 1 else 0.0

    resident = [*parallel.blocks, *optimizers, *(batch or ())]
    if parallel.across is not None:
        resident.append(parallel.across.source)
    return Way(run, tells, resident, threads)


def render_processes(report: dict[str, Any]) -> str:
    """The table, with the machine and the settings under it."""
    rows = [
        (
            result["way"],
            f"{1000 * median(result['seconds']):.0f}",
            f"{result['images_per_second']:.0f}",
            f"{result['speed_up']:.2f}",
            " + ".join(f"{peak:.0f}" for peak in result["peak_mib"]),
        )
        for result in report["results"]
    ]
    header = ("way", "ms/step", "images/s", "speed-up", "peak MiB of each process")
    return above_settings(table(header, rows), report)
