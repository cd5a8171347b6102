"""What is learnt: head, targets, losses, scores. The only place that knows."""

from dataclasses import fields
from typing import Any

from ..messages import unknown
from .classification import Classification
from .decoder import Decoder, Exit
from .detection import Detection
from .network import (
    DenseHead,
    DenseNetwork,
    Features,
    as_list,
    head_on,
    need_no_taps,
    new_decoder,
    run_units,
    units_and_head,
)
from .segmentation import Segmentation
from .task import ExitSite, Task

TASKS: dict[str, type[Any]] = {
    task.name: task for task in (Classification, Segmentation, Detection)
}

__all__ = [
    "TASKS",
    "Classification",
    "Decoder",
    "DenseHead",
    "DenseNetwork",
    "Detection",
    "Exit",
    "ExitSite",
    "Features",
    "Segmentation",
    "Task",
    "as_list",
    "create_task",
    "head_on",
    "keywords_of",
    "need_no_taps",
    "new_decoder",
    "run_units",
    "settings_of",
    "units_and_head",
]


def create_task(name: str, num_classes: int, decoder: str | None = None, **settings: Any) -> Task:
    """A task by name.

    Args:
        name: A key of ``TASKS``.
        num_classes: How many classes there are.
        decoder: Kind of decoder; the task's first if left out.
        settings: Of :func:`settings_of`.

    Raises:
        ValueError: For an unknown task, or a decoder that it does not have.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    if decoder is None:
        return TASKS[name](num_classes, **settings)
    if not TASKS[name].dense:
        raise ValueError(
            f"{name} takes the backbone's own head; decoder={decoder!r} is for dense tasks."
        )
    return TASKS[name](num_classes, decoder, **settings)


def keywords_of(task: Task) -> dict[str, Any]:
    """What ``localize`` takes for a task, all said: the other way round than :func:`create_task`.

    Nothing for classification, which is ``localize``'s own.
    """
    if not task.dense:
        return {}
    settings = dict(vars(task))
    return {"task": task.name, "decoder": settings.pop("kind"), **settings}


def settings_of(name: str) -> list[str]:
    """What a task takes beside classes and kind of decoder, e.g. ``anchor_size``."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    names = [field.name for field in fields(TASKS[name])]
    return [name for name in names if name not in ("num_classes", "kind")]
