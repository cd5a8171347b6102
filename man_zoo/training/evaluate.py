"""Exact scores over a loader, in one process or many."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..local_model import LocalModel
from ..tasks import Classification

Loader = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    task: Classification,
    forward: Callable[[Tensor], list[Tensor]],
    loader: Loader,
    outputs: int = 1,
) -> dict[str, Any]:
    """The task's scores of every output of ``forward``.

    Sums are taken over all processes at the end, so an uneven last batch, or none at all on some
    process, counts for exactly the images in it.

    Args:
        accelerator: For precision and the sums over processes.
        task: What is measured.
        forward: Images ``(B, C, H, W)`` to a list of logits ``(B, classes)``, the network's last.
        loader: Batches of this process's share.
        outputs: Length of that list.

    Returns:
        ``top1`` and ``top5`` in percent, ``loss`` and ``count`` of the last output, and
        ``exits``, top-1 of every output.
    """
    sums = torch.zeros(outputs, 3, dtype=torch.float64, device=accelerator.device)
    count = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for images, target in loader:
        with accelerator.autocast():
            exits = forward(images)
        sums += torch.stack([task.sums(logits, target) for logits in exits])
        count += len(target)
    sums, images_seen = accelerator.reduce(sums), int(accelerator.reduce(count))
    scores = [task.scores(of_one, images_seen) for of_one in sums]
    return scores[-1] | {"count": images_seen, "exits": [score["top1"] for score in scores]}


def validate(
    accelerator: Accelerator, task: Classification, backbone: nn.Module, loader: Loader, prefix: str
) -> dict[str, float]:
    """``{prefix}_top1`` and ``{prefix}_top5`` in percent and ``{prefix}_loss`` of a backbone."""
    backbone.eval()
    result = evaluate(accelerator, task, lambda images: [backbone(images)], loader)
    return {f"{prefix}_{key}": result[key] for key in ("top1", "top5", "loss")}


def evaluate_exits(
    accelerator: Accelerator, task: Classification, model: LocalModel, loader: Loader
) -> dict[str, Any]:
    """As :func:`evaluate`, with ``exits`` for every block: ``None`` where it cannot classify."""
    model.eval()
    if all(auxiliary.classifies for auxiliary in model.auxiliaries):
        return evaluate(accelerator, task, model.forward_exits, loader, outputs=len(model.blocks))
    result = evaluate(accelerator, task, lambda images: [model(images)], loader)
    return result | {"exits": [None] * len(model.auxiliaries) + result["exits"]}
