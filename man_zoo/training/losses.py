"""The local losses of an epoch, looked at now and then: each look waits for the device."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..console import UserError
from ..local_model import LocalModel


class NonFiniteLoss(UserError):
    """Training diverged: a local loss or a block's weights became NaN or infinite."""


class LossWatch:
    """Collects local losses on the device; checks and averages them when looked at.

    Args:
        accelerator: For the mean over processes.
        model: For the names of the blocks.
    """

    def __init__(self, accelerator: Accelerator, model: LocalModel) -> None:
        self.accelerator, self.model = accelerator, model
        self.clear()

    def clear(self) -> None:
        """Be at the beginning of an epoch."""
        self.unseen: list[tuple[int, Tensor]] = []
        self.total = torch.zeros((), device=self.accelerator.device)
        self.count = 0

    def add(self, update: int, losses: Tensor) -> None:
        """Losses ``(K,)`` of a batch that belongs to ``update``, counted from 1."""
        self.unseen.append((update, losses))

    def look(self) -> list[float]:
        """The newest losses ``(K,)``, means over processes.

        Raises:
            NonFiniteLoss: If one since the last look was not finite.
        """
        losses = torch.stack([losses for _, losses in self.unseen])
        losses = self.accelerator.reduce(losses, "mean")
        if not losses.isfinite().all():
            batch, block = (~losses.isfinite()).nonzero()[0].tolist()
            raise NonFiniteLoss(
                f"The loss of block {block + 1} ({self.model.block_name(block)}) was "
                f"{losses[batch, block].item()} at update {self.unseen[batch][0]}; the last "
                "checkpoint is untouched, and a lower --lr or a --clip-grad may help."
            )
        self.total, self.count = self.total + losses.sum(0), self.count + len(losses)
        self.unseen.clear()
        return losses[-1].tolist()

    def mean(self) -> list[float]:
        """Mean losses ``(K,)`` over all batches and processes.

        Raises:
            NonFiniteLoss: As :meth:`look`.
        """
        if self.unseen:
            self.look()
        return (self.total / self.count).tolist()

    def state_dict(self) -> dict[str, Any]:
        """With losses that are still this process's own: a look here would round another sum."""
        return {"unseen": self.unseen, "total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.accelerator.device
        self.unseen = [(update, losses.to(device)) for update, losses in state["unseen"]]
        self.total, self.count = state["total"].to(device), state["count"]


def check_weights(model: LocalModel, update: int) -> None:
    """Refuse weights and statistics that an update has spoilt, before they are saved.

    Raises:
        NonFiniteLoss: With the name of the first such block.
    """
    for j, block in enumerate(model.blocks):
        if not torch.stack([t.isfinite().all() for t in block.state_dict().values()]).all():
            raise NonFiniteLoss(
                f"Weights or running statistics of block {j + 1} ({model.block_name(j)}) were not "
                f"finite after update {update}; the last checkpoint is untouched, and a lower --lr "
                "or a --clip-grad may help."
            )
