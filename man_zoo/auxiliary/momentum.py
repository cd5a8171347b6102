"""MAN: a momentum copy of what comes next, in front of any base method's head.

MAN (Su et al., ECCV 2024, arXiv 2407.05623) passes a block's features through a copy of the first
unit of the next block before the local loss is taken. The copy follows that unit by an exponential
moving average, so a block sees something of what comes after it although no gradient crosses the
cut. MAN++ (arXiv 2507.16279) weighs the two branches by a learnable scale.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..families import Units, cannot_build
from ..layout import Layout
from ..messages import unknown
from ..recompute import run
from .running_copy import RunningCopy

FORMS = ("release", "paper")


@dataclass(frozen=True)
class MomentumSettings:
    """What a momentum unit is made of.

    Args:
        form: ``"paper"``, the equations of MAN: one copy, moved by gradient and EMA, plus a bias;
            or ``"release"``, what the authors' code runs: a learnable copy plus an EMA copy.
        momentum: m of ``copy <- m * copy + (1 - m) * source``; 0 copies directly.
        scale: MAN++'s learnable scale between the two branches (release form).
        bias: Whether the bias (paper) or the learnable copy (release) is there.
        ema: Whether the copy follows the next block. Without it the release form has no EMA copy,
            and the paper form's copy is a fresh unit that only learns.
        momentum_units: How many of the next block's first units are copied.
        learnable_units: Learnable units of the same kind after them (MAN++ on ViT has one).

    Raises:
        ValueError: For an unknown form, a momentum outside [0, 1], or settings that contradict.
    """

    form: str = "paper"
    momentum: float = 0.995
    scale: bool = False
    bias: bool = True
    ema: bool = True
    momentum_units: int = 1
    learnable_units: int = 0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is from 0 (direct copy) to 1 (none); got {self.momentum}.")
        if self.scale and (self.form == "paper" or not (self.bias and self.ema)):
            raise ValueError("manpp weighs two branches; use form='release' with bias and ema.")
        for name, value in (("bias", self.bias), ("ema", self.ema)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is True or False, not {value!r}.")
        if not (self.bias or self.ema):
            raise ValueError("A momentum unit without bias and without ema is nothing; keep one.")
        if self.momentum_units < 1 or self.learnable_units < 0:
            raise ValueError(
                "momentum_units is at least 1 and learnable_units at least 0; got "
                f"{self.momentum_units} and {self.learnable_units}."
            )


class MomentumUnit(nn.Module):
    """Features ``h`` through copies of the next block's first units (MAN, equations 5 to 8).

    Release form: ``s * bias(h) + (2 - s) * ema(h)``, with s = 1 but for MAN++; paper form:
    ``ema(h) + bias`` with one bias value a channel.

    Args:
        source: The next block's first units; never changed, never called.
        settings: Form and ablations.
        units: For fresh initial weights and the layout.
        channels: Output channels of the last source unit.
        recompute: Mode in which each copy is recomputed in backward, one after the other.
    """

    def __init__(
        self,
        source: nn.Sequential,
        settings: MomentumSettings,
        units: Units,
        channels: int,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.layout: Layout = units.layout
        self.momentum = settings.momentum
        self.follows = settings.ema
        # Copies of the source; the paper's bias is a parameter. None where left out.
        self.ema: Any = None
        self.bias: Any = None
        self.scale: nn.Parameter | None = None
        if settings.form == "release":
            if settings.ema:
                self.ema = RunningCopy(source).requires_grad_(False)
            if settings.bias:
                self.bias = _fresh(source, units)
            if settings.scale:
                self.scale = nn.Parameter(
                    torch.ones(1)
                )  # FSDP2 takes no number without a dimension
        else:
            self.ema = RunningCopy(source) if settings.ema else _fresh(source, units)
            if settings.bias:
                self.bias = nn.Parameter(torch.zeros(channels))
        learnable = (
            _fresh(_same_shape(source[-1], units, channels), units)
            for _ in range(settings.learnable_units)
        )
        self.learnable = nn.Sequential(*learnable)
        self.register_load_state_dict_pre_hook(_give_scale_a_dimension)

    def forward(self, h: Tensor) -> Tensor:
        h = self._combine(h)
        for unit in self.learnable:
            h = self._run(unit, h)
        return h

    def _combine(self, h: Tensor) -> Tensor:
        if self.ema is None:
            return self._run(self.bias, h)
        if self.bias is None:
            return self._run(self.ema, h)
        if isinstance(self.bias, nn.Parameter):
            return self._run(self.ema, h) + self.layout.per_channel(self.bias)
        bias, ema = self._run(self.bias, h), self._run(self.ema, h)
        if self.scale is not None:
            scale = self.scale[0]  # without a dimension, so that half precision stays
            return scale * bias + (2 - scale) * ema
        return bias + ema

    def _run(self, unit: nn.Module, h: Tensor) -> Tensor:
        return run(unit, h, recompute=self.recompute)


def _give_scale_a_dimension(
    unit: nn.Module, tensors: dict[str, Any], prefix: str, *_: object
) -> None:
    """Weights that were saved when the scale had none."""
    if (name := f"{prefix}scale") in tensors:
        tensors[name] = tensors[name].reshape(1)


def _fresh(source: nn.Module, units: Units) -> nn.Module:
    unit = copy.deepcopy(source)
    units.init(unit)
    return unit


def _same_shape(unit: nn.Module, units: Units, channels: int) -> nn.Module:
    """A unit like this one that keeps channels and size; ``ValueError`` if it cannot be built."""
    if units.build is None:
        raise cannot_build(unit)
    return units.build(unit, channels, channels, 1)


class MomentumLink:
    """The only tie between neighbouring blocks: unit(s) of block j + 1 -> their copy in block j.

    Args:
        source: The next block's first units.
        target: The momentum unit whose copy follows them.
    """

    def __init__(self, source: nn.Module, target: MomentumUnit) -> None:
        self.source = source
        self.target = target

    def update(self) -> None:
        """``copy <- m * copy + (1 - m) * source`` (MAN, equation 6)."""
        self.target.ema.follow(self.source, self.target.momentum)


def first_units(units: Units, block: range, count: int) -> nn.Sequential:
    """The first ``count`` units of a block.

    Raises:
        ValueError: If it has fewer.
    """
    if count > len(block):
        raise ValueError(
            f"momentum_units={count}, but the block after {units.names[block.start - 1]} has "
            f"{len(block)} unit(s); use momentum_units={len(block)} or fewer blocks."
        )
    return nn.Sequential(*(units.modules[i] for i in block[:count]))
