"""Training steps side by side: time, memory and arithmetic of several models in one run.

Every model stands beside its own backbone trained end to end, by the same code path, and beside
end to end with timm's activation checkpointing, which a practitioner would use instead.

**Time.** All models are in memory at once and take turns, one step each a round, so that whatever
else the machine does hits all alike. A ratio is the median of the ratios within each round; a
compiled model is divided by compiled end to end, an eager one by eager. The step is the training
recipe's: an SGD a block that steps right after the block's backward.

**Memory and arithmetic** come from :mod:`man_zoo.meter`, so they need neither the memory nor the
time of a step, and say nothing of compiled code. On a CUDA device the allocator's own peak, of each
model alone on the device, stands beside them.
"""

import gc
import time
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from ast import literal_eval
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from tqdm import tqdm

from .local_block import LocalBlock
from .local_model import LocalModel
from .localize import localize
from .messages import positive, unknown
from .meter import StepCost, fake, measure
from .spec import END_TO_END, LocalSpec, is_zoo_name, parse_name, take_keywords
from .training.errors import user_errors
from .training.facts import machine
from .training.learner import compile_blocks
from .training.report import table
from .training.setup import share_of_cores

# The first step makes the optimizer's state and compiles, the second compiles what that changed.
WARM_UP = 2


def build_parser() -> ArgumentParser:
    """Every flag of ``recipes/benchmark.py``."""
    parser = ArgumentParser(description="Compare training steps with end to end, in one run.")
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="zoo name, and keywords of its own if you like, "
        "e.g. resnet32_man_dgl_k16:form=release:momentum=0.99")  # fmt: skip
    add("--model-kwargs", nargs="*", default=[], type=_keyword, metavar="KEY=VALUE",
        help="keywords of all models; those of local methods do not reach end to end")  # fmt: skip
    add("--img-size", type=positive, metavar="PIXELS", help="the model's own by default")
    add("--batch-size", type=positive, default=256, metavar="N")
    add("--memory-batch-size", type=positive, metavar="N",
        help="batch for memory and arithmetic; --batch-size by default")  # fmt: skip
    add("--time", action=BooleanOptionalAction, default=True, help="whether to time steps")
    add("--steps", type=positive, default=7, metavar="N", help="timed steps of each model")
    add("--compile", action="store_true", help="time every model compiled as well")
    add("--channels-last", action=BooleanOptionalAction, default=True)
    add("--mixed-precision", choices=("no", "bf16"), default="no")
    add("--device", help="cpu, or the accelerator, e.g. cuda:1; the accelerator by default")
    add("--cpu-threads", type=positive, metavar="N", help="on the CPU; all cores by default")
    add("--json", type=Path, metavar="FILE", help="write the figures, each timed step among them")
    return parser


def _keyword(text: str) -> tuple[str, Any]:
    """``"momentum=0.9"`` -> ``("momentum", 0.9)``; what is no Python literal stays text."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


# Who takes part -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Args:
        name: As the table shows it.
        baseline: Name of the end-to-end line that this one is divided by.
        spec: Backbone, method, K.
        keywords: Keywords of the model.
        checkpointed: Whether timm's activation checkpointing is on.
        compiled: Whether its blocks are compiled.
    """

    name: str
    baseline: str
    spec: LocalSpec
    keywords: dict[str, Any]
    checkpointed: bool = False
    compiled: bool = False


def line_up(args: Namespace) -> list[Contestant]:
    """End to end, checkpointed and the models named, for each backbone; then the same compiled.

    Raises:
        ValueError: For a model that is no zoo name, or keywords that are not KEY=VALUE.
    """
    shared = dict(args.model_kwargs)
    of_backbone = dict(shared)
    take_keywords(of_backbone)
    named: dict[str, Contestant] = {}
    for text in args.models:
        contestant = parse_contestant(text, shared)
        spec = LocalSpec(contestant.spec.backbone, END_TO_END, 1)
        e2e = Contestant(spec.name, spec.name, spec, of_backbone)
        checkpointed = replace(e2e, name=f"{e2e.name}, checkpointed", checkpointed=True)
        for one in (e2e, checkpointed, contestant):
            named.setdefault(one.name, one)
    eager = list(named.values())
    return eager + [_compiled(one) for one in eager if args.compile]


def _compiled(one: Contestant) -> Contestant:
    name, baseline = f"{one.name}, compiled", f"{one.baseline}, compiled"
    return replace(one, name=name, baseline=baseline, compiled=True)


def parse_contestant(text: str, shared: dict[str, Any]) -> Contestant:
    """``NAME[:KEY=VALUE ...]``, its own keywords over the shared ones.

    Raises:
        ValueError: For a name that is no zoo name, or keywords that are not KEY=VALUE.
    """
    name, *keywords = text.split(":")
    if not is_zoo_name(name):
        raise unknown("model", name, [known for known in timm.list_models() if is_zoo_name(known)])
    try:
        own = dict(map(_keyword, keywords))
    except ArgumentTypeError as error:
        raise ValueError(f"{text}: {error}.") from error
    spec = LocalSpec(*parse_name(name))
    return Contestant(text, LocalSpec(spec.backbone, END_TO_END, 1).name, spec, shared | own)


def build(contestant: Contestant, args: Namespace, device: torch.device) -> LocalModel:
    """The model, in training mode.

    Raises:
        UserError: For an unknown backbone or keyword, an impossible K.
    """
    spec, keywords = contestant.spec, contestant.keywords
    # TypeError is how timm answers a keyword that it does not know.
    with user_errors(ValueError, TypeError, about=contestant.name):
        model = localize(spec.backbone, spec.method, spec.k, img_size=args.img_size, **keywords)
    if contestant.checkpointed:
        model.set_grad_checkpointing()
    model.train().to(device)
    return model.to(memory_format=_layout(args))


def _layout(args: Namespace) -> torch.memory_format:
    return torch.channels_last if args.channels_last else torch.contiguous_format


# One step -----------------------------------------------------------------------------------------


class Training:
    """A model in training on a batch of noise, as the training recipe would train it.

    Args:
        model: The model; real, or fake under ``FakeTensorMode``.
        args: ``channels_last`` and ``mixed_precision`` count here.
        batch_size: Images a step.
    """

    def __init__(self, model: LocalModel, args: Namespace, batch_size: int) -> None:
        self.model, self.blocks = model, model.blocks
        if model.spec.method == END_TO_END:
            # One block around the backbone's own forward: timm checkpoints only within that, and
            # end to end keeps no features that a next block would want.
            self.blocks = [LocalBlock([model.backbone], nn.Identity(), model.criterion)]
        self.optimizers = [
            create_optimizer_v2(
                block, opt="sgd", lr=0.1, weight_decay=1e-4, filter_bias_and_bn=False
            )
            for block in self.blocks
        ]
        device = next(model.parameters()).device
        images = torch.randn(batch_size, *model.input_size, device=device)
        self.images = images.contiguous(memory_format=_layout(args))
        self.target = torch.randint(model.num_classes, (batch_size,), device=device)
        self.forwards: Sequence[Any] = self.blocks
        if args.mixed_precision == "bf16":
            bf16 = torch.autocast(device.type, torch.bfloat16)
            self.forwards = [bf16(block.__call__) for block in self.blocks]

    def step(self) -> None:
        """One training step of all blocks."""
        self.model.local_step(self.images, self.target, blocks=self.forwards, step=self._update)

    def _update(self, j: int) -> None:
        self.optimizers[j].step()
        self.optimizers[j].zero_grad()


# The measurements ---------------------------------------------------------------------------------


def live_cost(model: LocalModel, args: Namespace, batch_size: int) -> StepCost:
    """Peak of live tensors and arithmetic of a step, on fake tensors; arguments of `Training`."""
    with fake(model) as model:
        training = Training(model, args, batch_size)
        resident = [*training.blocks, *training.optimizers, training.images, training.target]
        return measure(training.step, resident=resident)


def cuda_peak_gib(contestant: Contestant, args: Namespace, device: torch.device) -> float:
    """The CUDA allocator's peak over a steady step, of this model alone, in GiB."""
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    training = Training(build(contestant, args, device), args, _memory_batch(args))
    if contestant.compiled:
        compile_blocks(training.blocks)
    for _ in range(WARM_UP):
        training.step()
    torch.cuda.reset_peak_memory_stats(device)
    training.step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def time_steps(
    contestants: Sequence[Contestant], args: Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every timed step of every contestant; the contestants take turns."""
    trainings = {
        one.name: Training(build(one, args, device), args, args.batch_size) for one in contestants
    }
    # In one go: all blocks share one limit of compiled variants, which goes by their number.
    compile_blocks([b for one in contestants if one.compiled for b in trainings[one.name].blocks])
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


# The report ---------------------------------------------------------------------------------------


@dataclass
class Result:
    """The figures of one contestant; ``None`` where something was not measured.

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
        UserError: For an unknown model, keyword or device, flags that contradict, a folder of
            ``--json`` that is not there.
    """
    with user_errors():
        check(args)
        device = find_device(args.device)
        contestants = line_up(args)
    if device.type == "cpu":
        torch.set_num_threads(args.cpu_threads or share_of_cores())
    results = {one.name: Result(one.name) for one in contestants}
    add_memory(results, contestants, args)
    if args.time and device.type == "cuda":
        for one in tqdm(contestants, desc="CUDA memory", unit="model", leave=False):
            results[one.name].cuda_peak_gib = cuda_peak_gib(one, args, device)
    if args.time:
        add_times(results, contestants, args, device)
    return {
        "machine": machine(device),
        "settings": settings(args),
        "results": [asdict(result) for result in results.values()],
    }


def check(args: Namespace) -> None:
    """Flags against each other and the disk, before minutes are spent.

    Raises:
        ValueError: For flags that contradict.
        FileNotFoundError: If the folder of ``--json`` is not there.
    """
    if args.compile and not args.time:
        raise ValueError("--compile is about time and --no-time leaves time out; drop one of them.")
    if args.json and not args.json.parent.is_dir():
        raise FileNotFoundError(f"--json {args.json}: there is no folder {args.json.parent}.")


def add_memory(
    results: dict[str, Result], contestants: Sequence[Contestant], args: Namespace
) -> None:
    """Peak of live tensors and arithmetic; what is compiled is left out."""
    costs: dict[str, StepCost] = {}
    eager = [one for one in contestants if not one.compiled]
    for one in tqdm(eager, desc="memory and arithmetic", unit="model", leave=False):
        model = build(one, args, torch.device("cpu"))
        cost = costs[one.name] = live_cost(model, args, _memory_batch(args))
        e2e, result = costs[one.baseline], results[one.name]
        result.peak_gib = cost.peak_gib
        result.peak_ratio = cost.peak_bytes / e2e.peak_bytes
        result.arithmetic_ratio = cost.flops / e2e.flops


def _memory_batch(args: Namespace) -> int:
    return args.memory_batch_size or args.batch_size


def add_times(
    results: dict[str, Result],
    contestants: Sequence[Contestant],
    args: Namespace,
    device: torch.device,
) -> None:
    """Every timed step, its median, and the median of the ratios within each round."""
    times = time_steps(contestants, args, device)
    for one in contestants:
        seconds, result = times[one.name], results[one.name]
        result.seconds = seconds
        result.median_seconds = median(seconds)
        result.images_per_second = args.batch_size / median(seconds)
        rounds = zip(seconds, times[one.baseline], strict=True)
        result.time_ratio = median(own / e2e for own, e2e in rounds)


def find_device(name: str | None) -> torch.device:
    """The device of that name; the accelerator, or else the CPU, for ``None``.

    Raises:
        ValueError: If there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = ["cpu", *([accelerator.type] if accelerator else [])]
    name = name or here[-1]
    if name.split(":")[0] not in here:
        raise unknown("device", name, here)
    return torch.device(name)


def settings(args: Namespace) -> dict[str, Any]:
    """The flags that the figures depend on; without those that have no value."""
    elsewhere = ("models", "json", "device", "cpu_threads")
    values = {k: v for k, v in vars(args).items() if k not in elsewhere and v is not None}
    return values | {"model_kwargs": dict(args.model_kwargs)}


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
    lines = [table(["model", *(header for header, _ in columns.values())], rows), ""]
    for part in ("machine", "settings"):
        lines.append(", ".join(f"{key} {value}" for key, value in report[part].items()))
    return "\n".join(lines)
