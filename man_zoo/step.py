"""One training step of any local method: block by block, each graph freed before the next runs."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .auxiliary import MomentumLink
from .draws import drawn_from

Backward = Callable[[Tensor], object]


@dataclass(frozen=True)
class LocalOutput:
    """What a training step gives back.

    Args:
        logits: The last block's logits ``(B, classes)``, detached, in training mode: the network's,
            or an auxiliary's where others train the blocks after it, ``None`` if it has none.
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
    pass_on: Callable[[Tensor, Tensor], object] | None = None,
) -> LocalOutput:
    """Forward, backward and, where asked, update of every block in turn (MAN, algorithm 1).

    Block j's graph is gone before block j + 1 runs, and block j + 1 sees block j's output from
    before its update.

    Args:
        blocks: Local blocks, as they are or wrapped (DDP, compiled).
        links: Momentum links, one for each pair of neighbours, or none.
        images: Normalised images ``(B, C, H, W)``.
        target: Class indices ``(B,)`` or probabilities ``(B, classes)``.
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
            after its forward: they can be sent while it runs backward.
    """
    features, losses, last = images, [], len(blocks) - 1
    backwards = [backward] * len(blocks) if callable(backward) else backward

    def finish(j: int) -> None:
        if step is not None:
            step(j)
        if links and update_momentum and j < len(links):
            links[j].update()

    for j, block in enumerate(blocks):
        with nullcontext() if key is None else drawn_from(*key, first + j, device=images.device):
            features, loss, logits = block(features, target, restored)
        losses.append(loss.detach())
        if j == last:
            if pass_on is not None:
                pass_on(features, torch.stack(losses))
            del features  # nobody else reads them, and backward needs the room
        backwards[j](loss)
        # The last reference to the graph's root: without this the block would outlive its turn.
        del loss
        if not late:
            finish(j)
        elif j > 0:
            finish(j - 1)
    if late:
        finish(last)
    return LocalOutput(logits, torch.stack(losses))
