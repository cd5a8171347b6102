"""All candidates measured in one run, as figures and as a table."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from ..console import table, user_errors
from ..meter import StepCost
from ..parallel.processes import share_of_cores
from ..runs.metadata import machine
from .candidates import Candidate, line_up
from .devices import find_device, memory_device
from .step import build, live_cost, memory_batch, setting_of
from .timing import cuda_peak_gib, time_steps


@dataclass
class Result:
    """The figures of one candidate; ``None`` where something was not measured.

    Args:
        model: Name, with its keywords.
        seconds: Every timed step, round by round.
        median_seconds: Of a step.
        images_per_second: At the median.
        time_ratio: To end to end, the median over the rounds.
        peak_gib: Peak of live tensors over a step, in GiB.
        peak_ratio: To end to end.
        cuda_peak_gib: The CUDA allocator's peak, in GiB.
        arithmetic_ratio: To end to end.
    """

    model: str
    seconds: list[float] | None = None
    median_seconds: float | None = None
    images_per_second: float | None = None
    time_ratio: float | None = None
    peak_gib: float | None = None
    peak_ratio: float | None = None
    cuda_peak_gib: float | None = None
    arithmetic_ratio: float | None = None


COLUMNS = {
    "median_seconds": ("ms/step", lambda seconds: f"{1000 * seconds:.1f}"),
    "images_per_second": ("images/s", "{:.0f}".format),
    "time_ratio": ("of e2e", "{:.2f}".format),
    "peak_gib": ("peak GiB", "{:.3f}".format),
    "peak_ratio": ("of e2e", "{:.2f}".format),
    "cuda_peak_gib": ("CUDA GiB", "{:.3f}".format),
    "arithmetic_ratio": ("arithmetic of e2e", "{:.2f}".format),
}


def benchmark(args: Namespace) -> dict[str, Any]:
    """Measure as the flags say: ``machine``, ``settings`` and ``results``, a dict for each line.

    Raises:
        UserError: For an unknown model, keyword or device, or flags that contradict.
    """
    with user_errors():
        check(args)
        memory_device(args)
        device = find_device(args.device if args.time else None)
        candidates = line_up(args)
    if device.type == "cpu":
        torch.set_num_threads(args.cpu_threads or share_of_cores())
    results = {one.name: Result(one.name) for one in candidates}
    add_memory(results, candidates, args)
    if args.time and device.type == "cuda":
        for one in tqdm(candidates, desc="CUDA memory", unit="model", leave=False):
            results[one.name].cuda_peak_gib = cuda_peak_gib(one, args, device)
    if args.time:
        add_times(results, candidates, args, device)
    return {
        "machine": machine(device),
        "settings": settings(args),
        "results": [asdict(result) for result in results.values()],
    }


def check(args: Namespace) -> None:
    """Flags against each other, before minutes are spent.

    Raises:
        ValueError: For flags that contradict.
    """
    if args.compile and not args.time:
        raise ValueError("--compile is about time and --no-time leaves time out; drop one of them.")


def add_memory(
    results: dict[str, Result], candidates: Sequence[Candidate], args: Namespace
) -> None:
    """Peak of live tensors and arithmetic; what is compiled is left out."""
    costs: dict[str, StepCost] = {}
    setting = setting_of(args, memory_batch(args), memory_device(args))
    eager = [one for one in candidates if not one.compiled]
    for one in tqdm(eager, desc="memory and arithmetic", unit="model", leave=False):
        model = build(one, args, torch.device("cpu"))
        own = replace(setting, micro_batches=one.micro_batches)
        cost = costs[one.name] = live_cost(model, own)
        e2e, result = costs[one.baseline], results[one.name]
        result.peak_gib = cost.peak_gib
        result.peak_ratio = cost.peak_bytes / e2e.peak_bytes
        result.arithmetic_ratio = cost.flops / e2e.flops


def add_times(
    results: dict[str, Result],
    candidates: Sequence[Candidate],
    args: Namespace,
    device: torch.device,
) -> None:
    """Every timed step, its median, and the median of the ratios within each round."""
    times = time_steps(candidates, args, device)
    for one in candidates:
        seconds, result = times[one.name], results[one.name]
        result.seconds = seconds
        result.median_seconds = median(seconds)
        result.images_per_second = args.batch_size / median(seconds)
        rounds = zip(seconds, times[one.baseline], strict=True)
        result.time_ratio = median(own / e2e for own, e2e in rounds)


def settings(args: Namespace) -> dict[str, Any]:
    """The flags that the figures depend on; without those that have no value."""
    elsewhere = ("models", "json", "device", "cpu_threads")
    values = {k: v for k, v in vars(args).items() if k not in elsewhere and v is not None}
    return values | {"model_kwargs": dict(args.model_kwargs), "memory_of": memory_device(args)}


def render(report: dict[str, Any]) -> str:
    """The table, with the machine and the settings under it."""
    results = report["results"]
    columns = {
        key: column
        for key, column in COLUMNS.items()
        if any(result[key] is not None for result in results)
    }
    rows = [
        [
            result["model"],
            *(
                "" if result[key] is None else show(result[key])
                for key, (_, show) in columns.items()
            ),
        ]
        for result in results
    ]
    return above_settings(
        table(["model", *(header for header, _ in columns.values())], rows), report
    )


def above_settings(text: str, report: dict[str, Any]) -> str:
    """A table, with the machine and the settings under it."""
    parts = (report[part].items() for part in ("machine", "settings"))
    lines = (", ".join(f"{key} {value}" for key, value in part) for part in parts)
    return "\n".join([text, "", *lines])
