"""Exact scores over a loader, in one process or many."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..local_model import LocalModel
from ..parallel.block_parallel import BlockParallel
from ..tasks import Task

Loader = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    task: Task,
    forward: Callable[[Tensor], list[Tensor]],
    loader: Loader,
    outputs: int = 1,
    known: range | None = None,
) -> dict[str, Any]:
    """The task's scores of every output of ``forward``.

    What the processes have counted is put together at the end, so an uneven last batch, or none at
    all in some process, counts for exactly the images in it.

    Args:
        accelerator: For precision.
        task: What is measured.
        forward: Images ``(B, C, H, W)`` to a list of predictions, the network's last.
        loader: Batches of this process's share.
        outputs: How many predictions there are.
        known: Which of them ``forward`` gives in this process; all by default.

    Returns:
        The task's scores and ``count`` of the last output, and ``exits``, the main score of every
        output.
    """
    known = range(outputs) if known is None else known
    tallies = {j: task.tally() for j in known}
    count = 0
    for images, target in loader:
        with accelerator.autocast():
            exits = forward(images)
        for j, prediction in zip(known, exits, strict=True):
            tallies[j].add(prediction, target)
        if outputs - 1 in known:
            count += len(target)
    everyones, counts = gather_object([tallies]), gather_object([count])
    scores = [task.scores([own[j] for own in everyones if j in own]) for j in range(outputs)]
    exits = [score[task.main_score] for score in scores]
    return scores[-1] | {"count": sum(counts), "exits": exits}


def validate(
    accelerator: Accelerator,
    task: Task,
    parallel: BlockParallel,
    network: nn.Module,
    loader: Loader,
    prefix: str,
) -> dict[str, Any]:
    """The scores of a network, as ``{prefix}_loss`` and so on.

    Args:
        accelerator: As for :func:`evaluate`.
        task: As there.
        parallel: This process's share of the model.
        network: The model's, or its average.
        loader: Batches as :meth:`BlockParallel.batches` gives them.
        prefix: Of the keys.
    """
    network.eval()
    known = range(1) if parallel.is_last else range(0)
    result = evaluate(accelerator, task, parallel.through(network), loader, known=known)
    return {f"{prefix}_{key}": result[key] for key in result.keys() - {"count", "exits"}}


def evaluate_exits(
    accelerator: Accelerator,
    task: Task,
    model: LocalModel,
    loader: Loader,
    parallel: BlockParallel | None = None,
) -> dict[str, Any]:
    """As :func:`evaluate`, with ``exits`` for every block: ``None`` where it predicts nothing.

    Args:
        accelerator: As there.
        task: As there.
        model: With its auxiliaries.
        loader: Batches as they come to this process.
        parallel: This process's share of the model; all of it by default.
    """
    model.eval()
    parallel = parallel or BlockParallel(model, [range(len(model.blocks))])
    if all(auxiliary.classifies for auxiliary in model.auxiliaries):
        outputs, known = len(model.blocks), parallel.own
        return evaluate(accelerator, task, parallel.forward_exits, loader, outputs, known)
    known = range(1) if parallel.is_last else range(0)
    result = evaluate(accelerator, task, parallel.through(model.network), loader, known=known)
    return result | {"exits": [None] * len(model.auxiliaries) + result["exits"]}
