"""The epoch that is running, as far as it has come: what one process knows of it and no other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .losses import LossWatch
from .observe import Observer


class EpochSoFar:
    """What a run that was stopped needs beside a checkpoint, to end the epoch as it began it.

    Args:
        watch: The local losses.
        observer: What was seen of the blocks.
        modules: Whose buffers, BatchNorm's statistics above all, are this process's own until the
            epoch's end.
    """

    def __init__(self, watch: LossWatch, observer: Observer, modules: Sequence[nn.Module]) -> None:
        self.watch, self.observer, self.modules = watch, observer, modules
        self.begin()

    def begin(self) -> None:
        """Be at the beginning of an epoch."""
        self.watch.clear()
        self.images = 0  # of this process
        self.seconds = 0.0
        self.record: dict[str, Any] = {}  # of all batches, once they are done
        self.bad_images: set[str] = set()  # what was said of those that were left out

    def state_dict(self) -> dict[str, Any]:
        return {
            "watch": self.watch.state_dict(),
            "observer": self.observer.state_dict(),
            "images": self.images,
            "seconds": self.seconds,
            "record": self.record,
            "bad_images": sorted(self.bad_images),
            "buffers": [dict(module.named_buffers()) for module in self.modules],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watch.load_state_dict(state["watch"])
        self.observer.load_state_dict(state["observer"])
        self.images, self.seconds, self.record = (
            state[key] for key in ("images", "seconds", "record")
        )
        self.bad_images = set(state["bad_images"])
        for module, buffers in zip(self.modules, state["buffers"], strict=True):
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
