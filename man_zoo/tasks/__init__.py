"""What is learnt: head, targets, losses, scores. The only place that knows."""

from typing import Any

from ..messages import unknown
from .classification import Classification
from .decoder import Decoder, Exit
from .network import (
    DenseHead,
    DenseNetwork,
    Features,
    as_list,
    need_no_taps,
    run_units,
    units_and_head,
)
from .segmentation import Segmentation
from .task import ExitSite, Task

TASKS: dict[str, type[Any]] = {task.name: task for task in (Classification, Segmentation)}

__all__ = [
    "TASKS",
    "Classification",
    "Decoder",
    "DenseHead",
    "DenseNetwork",
    "Exit",
    "ExitSite",
    "Features",
    "Segmentation",
    "Task",
    "as_list",
    "create_task",
    "need_no_taps",
    "run_units",
    "units_and_head",
]


def create_task(name: str, num_classes: int, decoder: str | None = None) -> Task:
    """A task by name.

    Args:
        name: A key of ``TASKS``.
        num_classes: How many classes there are.
        decoder: Kind of decoder; the task's first if left out.

    Raises:
        ValueError: For an unknown task, or a decoder that it does not have.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    if decoder is None:
        return TASKS[name](num_classes)
    if not TASKS[name].dense:
        raise ValueError(
            f"{name} takes the backbone's own head; decoder={decoder!r} is for dense tasks."
        )
    return TASKS[name](num_classes, decoder)
