"""What one piece costs: a unit, an auxiliary or the head, run forward and backward once."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..meter import LiveBytes


@dataclass(frozen=True)
class Piece:
    """Cost of a piece; bytes count from before its forward pass, its input not among them.

    Args:
        saved: Alive after the forward pass, output included.
        forward_peak: Most alive during the forward pass.
        backward_peak: Most alive during the backward pass, the gradient of its output included.
        held_peak: The same where the output outlives the backward pass, as the next block's input.
        gradients: Of its parameters, alive until the block's optimizer has stepped.
        largest: Of its parameters, for the optimizer's temporaries.
        flops: Forward, backward and recomputed.
    """

    saved: int
    forward_peak: int
    backward_peak: int
    held_peak: int
    gradients: int
    largest: int
    flops: int


def measure_bytes(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    kept: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager[Any]],
    differentiable: bool,
) -> Piece:
    """The bytes of a piece; its arithmetic is left at 0.

    Args:
        module: Whose parameters get gradients.
        forward: Runs it.
        x: Its input.
        kept: Tensors that live through the whole step: no part of any piece.
        autocast: Around the forward pass.
        differentiable: Whether a gradient is asked of the input.
    """
    x = x.detach().requires_grad_(differentiable)
    with LiveBytes() as live, LiveBytes() as holding:
        for meter in (live, holding):
            meter.track(module, x, *kept)
        before = live.current
        with autocast():
            y = forward(x)
        saved, forward_peak = live.current - before, live.peak - before
        holding.pin(y)
        for meter in (live, holding):
            meter.reset_peak()
        loss = _Consumer.apply(y) if y.ndim else y
        del y
        loss.backward()
    gradients = [bytes_of(p.grad) for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return Piece(
        saved=saved,
        forward_peak=forward_peak,
        backward_peak=live.peak - before,
        held_peak=holding.peak - before,
        gradients=sum(gradients),
        largest=max(gradients, default=0),
        flops=0,
    )


class _Consumer(torch.autograd.Function):
    """Stands for what follows a unit: takes its output, keeps nothing, gives a gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.like = y.shape, y.dtype
        return y.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        shape, dtype = ctx.like
        return grads[0].new_empty(shape, dtype=dtype)


def without_data(module: Any, device: str) -> Any:
    """A copy with new tensors of the same shapes: fake ones under ``FakeTensorMode``."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    memo: dict[int, Tensor] = {id(b): empty(b) for b in module.buffers()}
    memo |= {id(p): nn.Parameter(empty(p), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def bytes_of(tensor: Tensor) -> int:
    """Of its elements."""
    return tensor.numel() * tensor.element_size()
