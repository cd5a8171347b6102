"""Exact accuracy over a loader, in one process or many."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..local_model import LocalModel

Loader = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    forward: Callable[[Tensor], list[Tensor]],
    loader: Loader,
    outputs: int = 1,
) -> dict[str, Any]:
    """Top-1, top-5 and cross-entropy of every output of ``forward``.

    Sums are taken over all processes at the end, so an uneven last batch, or none at all on some
    process, counts for exactly the images in it.

    Args:
        accelerator: For precision and the sums over processes.
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
        sums += torch.stack([_sums(logits.float(), target) for logits in exits])
        count += len(target)
    sums, count = accelerator.reduce(sums), accelerator.reduce(count)
    top1, top5, loss = (sums / count).T.tolist()
    return {
        "top1": 100 * top1[-1],
        "top5": 100 * top5[-1],
        "loss": loss[-1],
        "count": int(count),
        "exits": [100 * value for value in top1],
    }


def _sums(logits: Tensor, target: Tensor) -> Tensor:
    hits = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
    loss = F.cross_entropy(logits, target, reduction="sum")
    return torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double()])


def validate(
    accelerator: Accelerator, backbone: nn.Module, loader: Loader, prefix: str
) -> dict[str, float]:
    """``{prefix}_top1`` and ``{prefix}_top5`` in percent and ``{prefix}_loss`` of a backbone."""
    backbone.eval()
    result = evaluate(accelerator, lambda images: [backbone(images)], loader)
    return {f"{prefix}_{key}": result[key] for key in ("top1", "top5", "loss")}


def evaluate_exits(accelerator: Accelerator, model: LocalModel, loader: Loader) -> dict[str, Any]:
    """As :func:`evaluate`, with ``exits`` for every block: ``None`` where it cannot classify."""
    model.eval()
    if all(auxiliary.classifies for auxiliary in model.auxiliaries):
        return evaluate(accelerator, model.forward_exits, loader, outputs=len(model.blocks))
    result = evaluate(accelerator, lambda images: [model(images)], loader)
    return result | {"exits": [None] * len(model.auxiliaries) + result["exits"]}
