"""What an optimizer costs: its state, and what it has alive while it steps."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from ..meter import LiveBytes, tensors_of
from ..target import step_as
from .piece import bytes_of

# Any numbers but 0: without weight decay or momentum less is alive. timm's recipes' and ours.
_DEFAULTS = {"lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "filter_bias_and_bn": False}


class OptimizerCost(NamedTuple):
    """Of one optimizer.

    Args:
        state: Bytes that it keeps.
        temporaries: Most bytes alive while it steps.
    """

    state: int
    temporaries: int


def create_optimizer(
    module: nn.Module, opt: str, keywords: Mapping[str, Any], device: str
) -> Optimizer:
    """A block's optimizer as the training recipe makes it, stepping as it does on ``device``.

    Args:
        module: Whose parameters learn.
        opt: timm's name.
        keywords: Of timm's factory, over the recipe's.
        device: As :func:`man_zoo.target.acting_as` takes it.
    """
    optimizer = create_optimizer_v2(module, opt=opt, **(_DEFAULTS | dict(keywords)))
    step_as(device, optimizer)
    return optimizer


def steps_at_once(optimizer: Optimizer) -> bool:
    """Whether all parameters step together: their temporaries are alive together as well."""
    return any(group.get("foreach") for group in optimizer.param_groups)


def optimizer_cost(
    module: nn.Module, opt: str, keywords: Mapping[str, Any], device: str
) -> OptimizerCost:
    """Measured on a second step of ``module``, which has fake tensors; arguments as there."""
    learning = [p for p in module.parameters() if p.requires_grad]
    if not learning:
        return OptimizerCost(0, 0)
    for p in learning:
        p.grad = torch.empty_like(p)
    optimizer = create_optimizer(module, opt, keywords, device)
    optimizer.step()
    state = sum(bytes_of(t) for t in tensors_of(list(optimizer.state.values())))
    with LiveBytes() as live:
        live.track(module, optimizer)
        before = live.current
        optimizer.step()
    module.zero_grad()
    return OptimizerCost(state, live.peak - before)
