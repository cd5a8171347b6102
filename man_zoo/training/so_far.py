"""The epoch that is running, as far as it has come: what only the processes of one share know."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..parallel.places import Places
from .losses import LossWatch
from .observe import Observer, merge_states


class EpochSoFar:
    """What a run that was stopped needs beside a checkpoint, to end the epoch as it began it.

    Args:
        watch: The local losses.
        observer: What else is known of the blocks.
        modules: Whose buffers, BatchNorm's statistics above all, are of one share of the data until
            the epoch's end.
        places: For what other processes of this share know.
        blocks: How many blocks' losses this process knows.
    """

    def __init__(
        self,
        watch: LossWatch,
        observer: Observer,
        modules: Sequence[nn.Module],
        places: Places,
        blocks: int,
    ) -> None:
        self.watch, self.observer, self.modules = watch, observer, modules
        self.places, self.blocks = places, blocks
        self.begin()

    def begin(self) -> None:
        """Be at the beginning of an epoch."""
        self.watch.clear()
        self.observer.clear()
        self.images = 0  # of this process
        self.seconds = 0.0
        self.record: dict[str, Any] = {}  # of all batches, once they are done
        self.bad_images: set[str] = set()  # what was said of those that were left out

    def state_dict(self) -> dict[str, Any]:
        """The same in all processes of this share, so that any number of them can go on."""
        parts = self.places.gather(self._own_state())
        buffers = [
            {name: buffer for own in of_processes for name, buffer in own.items()}
            for of_processes in zip(*(part["buffers"] for part in parts), strict=True)
        ]
        return parts[-1] | {  # the last knows all losses
            "observer": merge_states([part["observer"] for part in parts]),
            "bad_images": parts[0]["bad_images"],  # the first reads them
            "buffers": buffers,
        }

    def _own_state(self) -> dict[str, Any]:
        return {
            "watch": self.watch.state_dict(),
            "observer": self.observer.state_dict(),
            "images": self.images,
            "seconds": self.seconds,
            "record": self.record,
            "bad_images": sorted(self.bad_images),
            "buffers": [_buffers(module) for module in self.modules],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watch.load_state_dict(state["watch"], self.blocks)
        self.observer.load_state_dict(state["observer"], self.blocks)
        self.images, self.seconds, self.record = (
            state[key] for key in ("images", "seconds", "record")
        )
        self.bad_images = set(state["bad_images"])
        for module, buffers in zip(self.modules, state["buffers"], strict=True):
            for name, buffer in _buffers(module).items():
                buffer.copy_(buffers[name])


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in module.named_buffers() if not buffer.is_meta}
