"""Floating-point operations of an operator, two per multiply-add.

As :mod:`torch.utils.flop_counter` counts them, but for the weight gradient of a grouped
convolution: up to torch 2.14 it counts that as if every group saw all channels (pytorch/pytorch
pull request 183405), 64 times too much where a depthwise convolution has 64 channels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry


def flop_counter() -> FlopCounterMode:
    """Counts what runs within it, on a step of its own: it keeps recomputed activations alive."""
    return FlopCounterMode(display=False, custom_mapping=_OURS)


def formula(func: Any) -> Callable[..., int] | None:
    """Of an operator's arguments and ``out_val``, the count; ``None`` where it counts nothing."""
    return _OURS.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: list[bool],
    **_: Any,
) -> int:
    """The gradients of input and weight are each as large a product as the forward pass."""
    forward = 2 * (x if transposed else gradient).numel() * weight.shape[1:].numel()
    return forward * sum(output_mask[:2])


_convolution_backward._get_raw = True  # type: ignore[attr-defined]  # tensors, not their shapes
_OURS = {torch.ops.aten.convolution_backward: _convolution_backward}
