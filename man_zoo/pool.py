"""Average pooling that keeps nothing for backward.

PyTorch's keeps its whole input, though the gradient needs no more than the input's size. In front
of a head that input is the momentum unit's output, on ImageNet the largest tensor of an auxiliary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def average_pool(x: Tensor, size: int) -> Tensor:
    """``F.adaptive_avg_pool2d(x, size)``: ``(B, C, H, W)`` to ``(B, C, size, size)``."""
    if x.shape[2] % size or x.shape[3] % size:
        return F.adaptive_avg_pool2d(x, size)  # its windows overlap
    return _AveragePool.apply(x, size)


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        ctx.layout = torch.channels_last if nhwc else torch.contiguous_format
        ctx.size = x.shape[2:]
        return F.adaptive_avg_pool2d(x, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        window = ctx.size[0] // grad.shape[2] * (ctx.size[1] // grad.shape[3])
        # In the input's layout: the ReLU before it would be several times as slow in another.
        grad = (grad / window).clone(memory_format=ctx.layout)
        return F.interpolate(grad, ctx.size, mode="nearest"), None
