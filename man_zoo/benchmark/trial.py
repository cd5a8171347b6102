"""Predicted against measured: a plan's step, run for real on the device at hand."""

import copy
from dataclasses import replace

from ..local_model import LocalModel
from ..planner import Plan, Planner
from ..planner.seconds import device_at_hand, device_name, free_bytes, median_seconds
from ..planner.sizes import GIB
from .step import Training, average_of

RUN = 2.0  # seconds of steps, after a warm-up


def trial(planner: Planner, plan: Plan) -> str:
    """What was predicted and what a step of one batch takes, in a sentence.

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
    """Median of real training steps, by the batch; arguments of :func:`trial`."""
    device = device_at_hand()
    setting = replace(planner.setting, device=device.type)
    model = LocalModel(
        copy.deepcopy(planner.backbone),
        plan.spec,
        input_size=planner.input_size,
        criterion=planner.criterion,
        task=planner.task,
    )
    model.train().to(device).to(memory_format=setting.memory_format)
    training = Training(model, setting, average_of(model, setting))
    return median_seconds(training.step, RUN) / setting.grad_accum_steps
