"""Which images make up the batches of an epoch, on each of the processes that share it."""

import numpy as np
import torch
from torch import Tensor


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator that depends on ``seed`` and ``epoch`` alone, the same on every rank."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def training_batches(
    count: int, batch_size: int, generator: torch.Generator, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, ...]:
    """This rank's batches of one shuffled epoch.

    The order is drawn for the global batch (``batch_size * world_size`` images) and each rank takes
    its own contiguous slice, so the images of a step do not depend on how many processes share it.
    The last partial global batch is dropped.

    Args:
        count: Images in the set.
        batch_size: Images a step and process.
        generator: Of the order; the same on every rank.
        rank: This process's place among the others.
        world_size: Number of processes.

    Returns:
        int64 indices of shape (batch_size,), one tensor a step.

    Raises:
        ValueError: If the set holds fewer images than one global batch.
    """
    check_enough(count, batch_size, world_size)
    steps = count // (batch_size * world_size)
    order = torch.randperm(count, generator=generator)[: steps * batch_size * world_size]
    return order.view(steps, world_size, batch_size)[:, rank].unbind()


def evaluation_batches(
    count: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, ...]:
    """This rank's batches of one pass in order.

    Each image belongs to exactly one rank: shares differ by at most one image, so a rank may have
    a smaller last batch, or one batch fewer, than its neighbour. Sum the counts and the metrics
    over ranks after the pass; do not call a collective for each batch.

    Returns:
        int64 indices of shape (at most batch_size,), one tensor a step.
    """
    share = torch.arange(count * rank // world_size, count * (rank + 1) // world_size)
    return share.split(batch_size) if len(share) else ()


def check_enough(count: int, batch_size: int, world_size: int) -> None:
    """Check that ``count`` images fill one global batch.

    Raises:
        ValueError: If they do not.
    """
    if count < batch_size * world_size:
        raise ValueError(
            f"The training set holds {count} images, fewer than one global batch of "
            f"{batch_size * world_size} (batch size {batch_size} x {world_size} processes); "
            f"expected --batch-size {count // world_size} or less."
        )
