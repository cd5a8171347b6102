"""One training step of any local method: block by block, each graph freed before the next runs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .auxiliary import MomentumLink
from .draws import drawn_from
from .tasks import Features

Backward = Callable[[Tensor], object]


@dataclass(frozen=True)
class LocalOutput:
    """What a training step gives back.

    Args:
        logits: The last block's prediction, e.g. logits ``(B, classes)``, detached, in training
            mode: the network's, or an auxiliary's where others train the blocks after it, ``None``
            if it has none.
        losses: Local losses ``(K,)`` in order of the blocks, detached; the last is the head's.
    """

    logits: Tensor | None
    losses: Tensor


def local_step(
    blocks: Sequence[Callable[..., Any]],
    links: Sequence[MomentumLink],
    images: Tensor,
    target: Tensor,
    *,
    restored: Tensor | None = None,
    backward: Backward | Sequence[Backward] = torch.Tensor.backward,
    step: Callable[[int], object] | None = None,
    update_momentum: bool = True,
    late: bool = False,
    key: Sequence[int] | None = None,
    first: int = 0,
    pass_on: Callable[[Features, Tensor], object] | None = None,
    micro_batches: int = 1,
    accumulating: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> LocalOutput:
    """Forward, backward and, where asked, update of every block in turn (MAN, algorithm 1).

    Block j's graph is gone before block j + 1 runs, and block j + 1 sees block j's output from
    before its update.

    With ``micro_batches`` a block runs its batch in slices, one forward and backward after the
    other, and then has its update: activations of one slice are alive at a time, and gradients of
    one block. That is the same training where images of a batch meet nowhere and every loss is a
    mean over them. With BatchNorm it is ghost batch norm: each slice has statistics of its own.

    Args:
        blocks: Local blocks, as they are or wrapped (DDP, compiled).
        links: Momentum links, one for each pair of neighbours, or none.
        images: Normalised images ``(B, C, H, W)``.
        target: Of the task, e.g. class indices ``(B,)`` or probabilities ``(B, classes)``.
        restored: The images un-normalised, for auxiliaries that look at them.
        backward: How to run a loss backward, e.g. ``accelerator.backward``; one for all blocks or
            one a block.
        step: Called with the block's index (from 0, of these) after its backward: the place for
            the block's own optimizer.
        update_momentum: Whether MAN's copies follow in this step; off while gradients accumulate.
        late: Whether a block's ``step`` and its copy wait for the next block's backward, so that
            its gradients may be averaged over processes meanwhile. Nothing else changes: the copy
            still follows before the next block's ``step``.
        key: Seed and step, say: a block's random numbers then follow from these and its index
            alone. Drawn from torch's generators as they are if left out.
        first: Index of the first of these blocks in the network, where others train those before.
        pass_on: Takes the last block's features and the losses ``(K,)``, where others go on, right
            after its last forward: they can be sent while it runs backward.
        micro_batches: Slices of the batch, as equal as can be; one an image where there are fewer.
        accumulating: Called with the block's index; what it gives is entered for every slice but
            the last, whose backward completes the gradients: the place for DDP's ``no_sync``.
    """
    backwards = [backward] * len(blocks) if callable(backward) else backward
    targets = target.tensor_split(min(micro_batches, len(target)))
    count, last = len(targets), len(blocks) - 1
    beside = [None] * count if restored is None else restored.tensor_split(count)
    features: list[Any] = [*images.tensor_split(count)]
    logits: list[Any] = [None] * count
    losses: list[Any] = [0.0] * len(blocks)

    def run(j: int, i: int) -> None:
        """Block j's forward and backward on slice i, whose output takes the place of its input."""
        features[i], loss, logits[i] = blocks[j](features[i], targets[i], beside[i])
        share = len(targets[i]) / len(target)
        losses[j] += share * loss.detach()
        if j == last and pass_on is None:
            features[i] = None  # nobody else reads them, and backward needs the room
        elif j == last and i == count - 1:
            assert pass_on is not None
            pass_on(_whole(features), torch.stack(losses))
            features.clear()
        # The root of the graph goes with this call: else the block would outlive its turn.
        backwards[j](share * loss)

    def finish(j: int) -> None:
        if step is not None:
            step(j)
        if links and update_momentum and j < len(links):
            links[j].update()

    for j in range(len(blocks)):
        with nullcontext() if key is None else drawn_from(*key, first + j, device=images.device):
            for i in range(count):
                with accumulating(j) if i < count - 1 else nullcontext():
                    run(j, i)
        if not late:
            finish(j)
        elif j > 0:
            finish(j - 1)
    if late:
        finish(last)
    return LocalOutput(None if logits[0] is None else _whole(logits), torch.stack(losses))


def _whole(slices: Sequence[Any]) -> Any:
    if len(slices) == 1:
        return slices[0]
    if isinstance(slices[0], tuple):  # with what a decoder taps
        return tuple(map(torch.cat, zip(*slices, strict=True)))
    return torch.cat(list(slices))
