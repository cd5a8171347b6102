"""The copy that follows by a moving average, in float32 whatever the model is in."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class RunningCopy(nn.Sequential):
    """A copy of units that stays in float32 when the model moves to half precision.

    A step of the average is half a percent of a difference, which half precision rounds away: the
    copy would never move. Features in half precision pass through it as under autocast.

    Args:
        source: The units to copy.
    """

    def __init__(self, source: nn.Sequential) -> None:
        super().__init__(*copy.deepcopy(source))

    def forward(self, h: Tensor) -> Tensor:
        if h.dtype not in HALF or torch.is_autocast_enabled(h.device.type):
            return super().forward(h)
        with torch.autocast(h.device.type, h.dtype):
            return super().forward(h).to(h.dtype)

    # What to(), half() and their like call.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(lambda tensor: _without_loss(tensor, fn(tensor)), recurse)

    @torch.no_grad()
    def follow(self, source: nn.Module, momentum: float) -> None:
        """``copy <- momentum * copy + (1 - momentum) * source``, parameters only.

        Buffers stay: the copy's BatchNorm statistics come from its own forward passes.
        """
        copies: list[Tensor] = list(self.parameters())
        sources = [p.to(own.dtype) for p, own in zip(source.parameters(), copies, strict=True)]
        torch._foreach_lerp_(copies, sources, 1 - momentum)


def _without_loss(tensor: Tensor, moved: Tensor) -> Tensor:
    """``moved``; where that is half precision, ``tensor`` as it was, moved in float32."""
    return moved.float().copy_(tensor) if moved.dtype in HALF else moved
