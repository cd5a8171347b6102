"""Predicted against measured: a plan's step, run for real on the device at hand."""

import copy

import torch

from ..local_model import LocalModel
from .optimizer import create_optimizer
from .plan import Plan
from .planner import Planner
from .seconds import device_at_hand, device_name, free_bytes, median_seconds
from .sizes import GIB

RUN = 2.0  # seconds of steps, after a warm-up


def trial(planner: Planner, plan: Plan) -> str:
    """What was predicted and what a step takes, in a sentence.

    Args:
        planner: Whose backbone has real weights; left as it is.
        plan: Of which the pieces were timed.
    """
    device, predicted = device_at_hand(), plan.cost.seconds
    said = f"{predicted:.3g} s a step predicted on {device_name(device)}"
    free = free_bytes(device)
    if plan.cost.peak > free:
        return f"{said}; no step was run, because {free / GIB:.2f} GiB are free there."
    measured = step_seconds(planner, plan)
    return f"{said}, {measured:.3g} s measured ({measured / predicted - 1:+.0%})."


def step_seconds(planner: Planner, plan: Plan) -> float:
    """Median of real training steps; arguments of :func:`trial`."""
    setting, device = planner.setting, device_at_hand()
    model = LocalModel(
        copy.deepcopy(planner.backbone),
        plan.spec,
        input_size=planner.input_size,
        criterion=planner.criterion,
        task=planner.task,
    )
    model.train().to(device).to(memory_format=setting.memory_format)
    optimizers = [
        create_optimizer(block, setting.opt, setting.opt_kwargs, device.type)
        for block in model.blocks
    ]
    images = torch.randn(setting.batch_size, *planner.input_size, device=device)
    images = images.contiguous(memory_format=setting.memory_format)
    target = model.task.random_target(setting.batch_size, model.input_size[1:], device)

    def update(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    def step() -> None:
        with setting.autocast(device.type):
            model.local_step(images, target, step=update)

    return median_seconds(step, RUN)
