"""The planner beside the meter: random training steps, planned and then run on fake tensors."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import timm
import torch

from ..console import table
from ..localize import localize
from ..planner import Planner, Setting
from ..planner.sizes import MIB
from .step import live_cost

LIMIT = 0.03
HEADER = ("network", "method", "recompute", "step", "planned MiB", "metered MiB", "deviation")
CLASSES = 10
# Small members of the families, and the side of their images.
BACKBONES = {
    "resnet20": 32,
    "resnet10t": 64,
    "resnet18": 64,
    "seresnet18": 64,
    "resnetv2_18": 64,
    "nf_resnet26": 64,
    "regnety_002": 64,
    "vgg11_bn": 64,
    "hgnetv2_b0": 64,
    "ese_vovnet19b_dw": 64,
    "efficientnet_lite0": 64,
    "mobilenetv3_small_050": 64,
    "convnext_atto": 64,
    "mambaout_femto": 64,
    "mixer_s32_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "vit_tiny_patch16_224": 224,
    "eva02_tiny_patch14_224": 224,
    "vit_relpos_small_patch16_224": 224,
}
METHODS = ("dgl", "infopro", "predsim", "man_dgl", "man_infopro", "manpp_dgl", "overlap_dgl")
RECOMPUTE = (None, "auxiliaries", "all", "selective", "expansions", "stepwise", "sparing")
# What a step can be, a list of choices each; a dimension of Setting is one more line.
DIMENSIONS: dict[str, tuple[Any, ...]] = {
    "batch_size": (2, 8, 32),
    "opt": ("sgd", "adamw", "lamb", "lion"),
    "precision": ("no", "bf16", "fp16"),
    "device": ("cuda", "cpu"),
    "grad_accum_steps": (1, 1, 2, 4),
    "model_ema": (False, False, True),
    "channels_last": (False, True),
    "soft_target": (False, False, True),
    "micro_batches": (1, 1, 2),
}


@dataclass(frozen=True)
class Combination:
    """A step that is planned and metered.

    Args:
        backbone: timm name.
        method: Method name.
        k: Number of local blocks.
        recompute: As ``localize`` takes it.
        setting: What the step is.
    """

    backbone: str
    method: str
    k: int
    recompute: str | None
    setting: Setting

    @property
    def keywords(self) -> dict[str, Any]:
        """Of :func:`man_zoo.localize`, beside backbone, method and K."""
        return {"cuts": "even", "recompute": self.recompute}


@dataclass(frozen=True)
class Outcome:
    """Peaks of one combination, in bytes."""

    combination: Combination
    planned: int
    metered: int

    @property
    def deviation(self) -> float:
        """Of the plan from the meter, relative."""
        return self.planned / self.metered - 1


def combinations(seed: int) -> Iterator[Combination]:
    """Random ones without end; the same for the same seed.

    Every family comes once before one comes again.
    """
    rng = random.Random(seed)
    while True:
        for backbone in rng.sample(sorted(BACKBONES), len(BACKBONES)):
            method, k = rng.choice(METHODS), rng.randint(2, 4)
            recompute = rng.choice(RECOMPUTE)
            setting = {key: rng.choice(values) for key, values in DIMENSIONS.items()}
            if setting["precision"] == "fp16":
                setting["device"] = "cuda"  # the CPU does not train in fp16
            if method == "predsim" or setting["batch_size"] == 2:
                setting["micro_batches"] = 1  # a loss that compares images; BatchNorm of one
            yield Combination(backbone, method, k, recompute, Setting(**setting))


def check(one: Combination) -> Outcome:
    """Plan a combination without its weights, build it, and meter a step."""
    size = BACKBONES[one.backbone]
    with torch.device("meta"):
        backbone = timm.create_model(one.backbone, num_classes=CLASSES)
    planner = Planner(backbone, one.backbone, one.method, {}, (3, size, size), one.setting)
    plan = planner.cuts(one.k, **one.keywords)
    model = localize(
        one.backbone, one.method, one.k, num_classes=CLASSES, img_size=size, **one.keywords
    )
    model.train().to(memory_format=one.setting.memory_format)
    return Outcome(one, plan.cost.peak, live_cost(model, one.setting).peak_bytes)


def check_all(count: int, seed: int, progress: Callable[[], object]) -> list[Outcome]:
    """The first ``count`` combinations of a seed; ``progress`` is called after each."""
    outcomes = []
    for _, one in zip(range(count), combinations(seed), strict=False):
        outcomes.append(check(one))
        progress()
    return outcomes


def render(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table, and the largest deviation under it."""
    return "\n".join([table(HEADER, [_cells(one) for one in outcomes]), "", summary(outcomes)])


def page(outcomes: Sequence[Outcome], command: str) -> str:
    """The same as a Markdown page that says how it was made."""
    rows = [HEADER, ["---"] * len(HEADER), *(_cells(one) for one in outcomes)]
    made = (
        "Random training steps, each planned from its pieces and then run whole on fake tensors, "
        f"by `{command}` (timm {timm.__version__}, torch {torch.__version__.split('+')[0]}). "
    )
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(
        ["# The planner against the meter", "", made + summary(outcomes), "", *lines, ""]
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """The deviations in a sentence."""
    sizes = sorted(abs(one.deviation) for one in outcomes)
    return (
        f"Of {len(sizes)} steps the largest deviation is {sizes[-1]:.2%}, "
        f"the median {median(sizes):.2%}."
    )


def _cells(outcome: Outcome) -> list[str]:
    one = outcome.combination
    return [
        one.backbone,
        f"{one.method} K={one.k}",
        one.recompute or "",
        _step(one.setting),
        f"{outcome.planned / MIB:.1f}",
        f"{outcome.metered / MIB:.1f}",
        f"{outcome.deviation:+.2%}",
    ]


def _step(setting: Setting) -> str:
    """What the step is, where it differs from the default; batch, optimizer and device always."""
    always = {"batch_size": f"batch {setting.batch_size}", "opt": setting.opt}
    always |= {"device": setting.device}
    rest = (
        f.name if getattr(setting, f.name) is True else f"{f.name} {getattr(setting, f.name)}"
        for f in fields(setting)
        if f.name in DIMENSIONS.keys() - always.keys() and getattr(setting, f.name) != f.default
    )
    return ", ".join([*always.values(), *rest]).replace("_", " ")
