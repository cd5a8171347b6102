"""What a CUDA device does differently, done on fake tensors of the CPU: for planner and meter.

No backward pass runs on fake CUDA tensors where there is no such device (torch 2.14), so the
tensors are the CPU's and what decides over memory is made the same:

- **autocast**: each device has lists of its own (``ATen/autocast_mode.h``). On CUDA layer norm,
  group norm, softmax, resizing and more run in float32, which the CPU runs in half precision.
- **attention**: the memory-efficient kernel, which takes a bias that learns; on the CPU such a bias
  means that the whole attention matrix is kept.
- **dropout**: a mask of one byte an element, not of four.
- **optimizers**: those that have a ``foreach`` form use it, with temporaries of the size of all
  gradients and not of the largest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import fallthrough_kernel
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICES = ("cuda", "cpu")
# Of the operators that CUDA's autocast knows and the CPU's does not, those that do not run in
# float32: in half precision, and in the widest type of their inputs.
_HALF = {
    *("einsum", "addmv", "addr", "mv", "chain_matmul", "linalg_multi_dot", "convolution"),
    *("_convolution", "cudnn_convolution", "cudnn_convolution_transpose", "_cudnn_rnn"),
    *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell"),
    *("rnn_relu_cell", "_scaled_dot_product_flash_attention"),
}
_WIDEST = {
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "index_put", "tensordot"),
    "scatter_add",
}
_BIAS_ALIGNMENT = 16  # elements of a row of the attention's bias


@contextmanager
def acting_as(device: str) -> Iterator[None]:
    """Within, ``torch.autocast("cpu")``, attention and dropout are ``device``'s.

    Args:
        device: ``"cuda"``, or ``"cpu"``, which changes nothing.
    """
    if device == "cpu":
        yield
        return
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in _registered("AutocastCUDA") - _registered("AutocastCPU"):
            library.impl(name, _cast(name), "AutocastCPU")
        for name in _registered("AutocastCPU") - _registered("AutocastCUDA"):
            library.impl(name, fallthrough_kernel, "AutocastCPU")
        library.impl("scaled_dot_product_attention", _attention, "AutogradCPU")
        library.impl("dropout", _dropout, "AutogradCPU")
        yield


def step_as(device: str, optimizer: Optimizer) -> None:
    """Let an optimizer step as it does by default on ``device``."""
    for group in optimizer.param_groups:
        if device == "cuda" and "foreach" in group and group["foreach"] is None:
            group["foreach"] = True


def _registered(key: str) -> set[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name for name in names if name.startswith("aten::")}


def _cast(name: str) -> Callable[..., Any]:
    """CUDA's autocast of an operator, for the CPU's tensors."""
    packet, _, overload = name.removeprefix("aten::").partition(".")
    call = getattr(getattr(torch.ops.aten, packet), overload or "default")
    names = [argument.name for argument in call._schema.arguments]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        half = torch.get_autocast_dtype("cpu")
        if packet not in _HALF | _WIDEST and "dtype" in names:
            if given.get("dtype") is None:
                given["dtype"] = torch.float32  # the kernel reads half precision: no copy
        else:
            wide = packet not in _HALF | _WIDEST or (packet in _WIDEST and _any_float32(given))
            dtype = torch.float32 if wide else half
            given = tree_map_only(Tensor, lambda tensor: _to(tensor, dtype), given)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return call(**given)

    return kernel


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _any_float32(given: object) -> bool:
    return any(isinstance(t, Tensor) and t.dtype is torch.float32 for t in tree_leaves(given))


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    eligible = tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.to(dtype) if eligible else tensor


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    bias = attn_mask
    if bias is not None:
        if bias.dtype is torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -torch.inf)
        keys = bias.shape[-1]
        if keys % _BIAS_ALIGNMENT:
            bias = F.pad(bias, (0, -keys % _BIAS_ALIGNMENT))[..., :keys]
        bias = bias.expand(*query.shape[:-1], keys)
    learns = any(t is not None and t.requires_grad for t in (query, key, value, bias))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, learns, dropout_p, is_causal, scale=scale)[0]


def _dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return torch.native_dropout(input, p, train)[0] if train and 0 < p < 1 else input
