"""The local losses of an epoch, looked at now and then: each look waits for the device."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..console import UserError
from ..local_model import LocalModel
from ..parallel.places import Places


class NonFiniteLoss(UserError):
    """Training diverged: a local loss or a block's weights became NaN or infinite."""


class LossWatch:
    """Collects local losses on the device; checks and averages them when looked at.

    Args:
        places: For the mean over the data's shares.
        model: For the names of the blocks.
        device: Where losses are.
    """

    def __init__(self, places: Places, model: LocalModel, device: torch.device) -> None:
        self.places, self.model, self.device = places, model, device
        self.clear()

    def clear(self) -> None:
        """Be at the beginning of an epoch."""
        self.unseen: list[tuple[int, Tensor]] = []
        self.total = torch.zeros((), device=self.device)
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
        losses = self.places.mean(losses)
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

    def load_state_dict(self, state: dict[str, Any], blocks: int) -> None:
        """Take what a process that knew all losses has saved, for the first ``blocks`` of them."""
        self.unseen = [
            (update, losses[:blocks].to(self.device)) for update, losses in state["unseen"]
        ]
        total, self.count = state["total"].to(self.device), state["count"]
        self.total = total[:blocks] if total.dim() else total


def check_weights(places: Places, model: LocalModel, update: int) -> None:
    """Refuse weights and statistics that an update has spoilt, before they are saved.

    Raises:
        NonFiniteLoss: With the name of the first such block; alike in processes that share data.
    """
    device = next(p.device for p in model.parameters() if not p.is_meta)
    spoilt = torch.stack([_is_spoilt(block).to(device) for block in model.blocks]).float()
    for j in places.mean(spoilt).nonzero().flatten().tolist():
        raise NonFiniteLoss(
            f"Weights or running statistics of block {j + 1} ({model.block_name(j)}) were not "
            f"finite after update {update}; the last checkpoint is untouched, and a lower --lr "
            "or a --clip-grad may help."
        )


def _is_spoilt(block: nn.Module) -> Tensor:
    """Whether this process's share of it is; not, and on the CPU, where it has none."""
    tensors = (t.to_local() if isinstance(t, DTensor) else t for t in block.state_dict().values())
    finite = [t.isfinite().all() for t in tensors if not t.is_meta]
    return ~torch.stack(finite).all() if finite else torch.tensor(False)
