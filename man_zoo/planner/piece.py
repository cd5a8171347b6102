"""What one piece costs: a unit, an auxiliary or the head, run forward and backward once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..recompute import WHERE_NOTHING_WIDENS
from .piece_meter import PieceMeter

# A piece run: itself, its input, images and target in; its output or loss out.
Forward = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """Cost of a piece; bytes count from before its forward pass, its input not among them.

    Args:
        saved: Alive after the forward pass for its own backward.
        output: Of its output, where that is not among what it saves: alive while the next piece
            runs forward, and further only if that one saves it.
        saves_input: Whether it keeps its input for its backward.
        cached: Casts of its weights that nobody saves: autocast keeps them until the forward pass
            of the whole block is over.
        forward_peak: Most alive during the forward pass, output included.
        backward_peak: Most alive during the backward pass, the gradient of its output included.
        held_peak: The same where the output outlives the backward pass, as the next block's input.
        gradients: Of its parameters, alive until the block's optimizer has stepped; 0 where they
            live longer than that, or are there already.
        there: The same where another slice of the batch has left them before this piece runs.
        temporaries: Most that the optimizer has alive while it steps.
        flops: Forward, backward and recomputed.
        widens: Whether a product of its forward pass is larger than all that it is made of.
        seconds: The same and the update, on the device at hand; 0 where nobody timed it.
    """

    saved: int
    output: int
    saves_input: bool
    cached: int
    forward_peak: int
    backward_peak: int
    held_peak: int
    gradients: int
    there: int
    temporaries: int
    flops: int
    widens: bool
    seconds: float = 0.0

    @property
    def work(self) -> float:
        """What a plan keeps small: seconds, or arithmetic where nobody timed it."""
        return self.seconds or self.flops

    def beats(self, other: "Piece") -> bool:
        """Whether it costs no more than the other in any way."""
        return (
            self.work <= other.work
            and self.saved <= other.saved
            and self.output <= other.output
            and self.saves_input <= other.saves_input
            and self.cached <= other.cached
            and self.forward_peak <= other.forward_peak
            and self.backward_peak <= other.backward_peak
            and self.held_peak <= other.held_peak
        )


def measure_piece(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    kept: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager[Any]],
    differentiable: bool,
    gradients: bool = False,
    beside: Sequence[nn.Module] = (),
) -> Piece:
    """Bytes and arithmetic of a piece; optimizer and other slices' gradients are left at 0.

    Args:
        module: Whose parameters get gradients.
        forward: Runs it.
        like: As its input.
        kept: Tensors that live through the whole step: no part of any piece.
        autocast: Around the forward pass.
        differentiable: Whether a gradient is asked of the input.
        gradients: Whether the parameters have gradients already, to which these are added.
        beside: Other pieces' modules that it runs through and leaves gradients in.
    """
    touched = nn.ModuleList([module, *beside])
    if gradients:
        for p in touched.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
    seed = like.new_zeros((), requires_grad=differentiable)
    with PieceMeter() as meter:
        x = _Source.apply(seed, like)
        meter.track(touched, *kept).keep_input(x)
        before = meter.current
        with autocast():
            y = forward(x)
            within, widens = meter.with_input, meter.widens
        forward_peak, alive = meter.peak - before, meter.with_input - before
        meter.keep_output(y)
        passed_on = y.untyped_storage() is x.untyped_storage()
        loss = _Sink.apply(y) if y.ndim else y
        del y
        saved, input_too = meter.with_input - before, meter.current
        del x
        saves_input = passed_on or meter.current == input_too
        meter.reset_peak()
        loss.backward()
    grown = [p.grad for p in module.parameters() if p.grad is not None and not gradients]
    touched.zero_grad()
    return Piece(
        saved=saved,
        output=alive - saved,
        saves_input=saves_input,
        cached=within - before - alive,
        forward_peak=forward_peak,
        backward_peak=meter.peak - before,
        held_peak=meter.held_peak - before,
        gradients=sum(map(bytes_of, grown)),
        there=0,
        temporaries=0,
        flops=meter.flops,
        widens=widens,
    )


class _Source(torch.autograd.Function):
    """Stands for what comes before a piece: makes its input, keeps nothing, takes a gradient."""

    @staticmethod
    def forward(ctx: Any, seed: Tensor, like: Tensor) -> Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].new_zeros(()), None


class _Sink(torch.autograd.Function):
    """Stands for what follows a unit: takes its output, keeps nothing, gives a gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.like = torch.empty_like(y, device="meta")
        return y.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.empty_like(ctx.like, device=grads[0].device)


def without_data(
    module: Any,
    device: str,
    memory_format: torch.memory_format = torch.contiguous_format,
    instead: Mapping[int, nn.Module] | None = None,
) -> Any:
    """A copy with new tensors of the same shapes: fake ones under ``FakeTensorMode``.

    Args:
        module: To be copied.
        device: Of the copy.
        memory_format: Of what has four dimensions, as ``module.to(memory_format=...)``.
        instead: Modules that the copy refers to in place of others, by the ids of those.
    """

    def empty(tensor: Tensor) -> Tensor:
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        channels_last = memory_format is torch.channels_last and tensor.ndim == 4
        return new.contiguous(memory_format=memory_format) if channels_last else new

    memo: dict[int, Any] = {id(b): empty(b) for b in module.buffers()}
    memo |= {id(p): nn.Parameter(empty(p), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo | dict(instead or {}))


def same_mode(recompute: str | None, plain: Callable[[], Piece]) -> str | None:
    """The first of the modes that are the same for a piece, which costs ``plain()`` in none."""
    if recompute not in WHERE_NOTHING_WIDENS or plain().widens:
        return recompute
    return WHERE_NOTHING_WIDENS[recompute]


def bytes_of(tensor: Tensor) -> int:
    """Of its elements."""
    return tensor.numel() * tensor.element_size()
