"""Fake CPU tensors that act as a CUDA device's, against torch's own autocast and known sizes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from man_zoo.meter import LiveBytes
from man_zoo.target import acting_as, step_as

OPERATORS = {
    "linear": lambda x: F.linear(x, x),
    "matmul": lambda x: x @ x,
    "einsum": lambda x: torch.einsum("ij,jk->ik", x, x),
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "group norm": lambda x: F.group_norm(x, 2),
    "softmax": lambda x: x.softmax(-1),
    "log softmax": lambda x: F.log_softmax(x, dim=-1),
    "cross-entropy": lambda x: F.cross_entropy(x, torch.zeros_like(x)),
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "power": lambda x: x**2,
    "norm": lambda x: x.norm(),
    "normalize": lambda x: F.normalize(x),
    "GELU": lambda x: F.gelu(x),
    "ReLU": lambda x: F.relu(x),
    "cat": lambda x: torch.cat([x, x.float()]),
    "addcmul": lambda x: torch.addcmul(x, x, x.float()),
    "resize": lambda x: F.interpolate(x[None, None], scale_factor=2),
    "pad": lambda x: F.pad(x[None, None], (1, 1, 1, 1), mode="reflect"),
    "MSE": lambda x: F.mse_loss(x, x),
}


@contextmanager
def cuda_autocast(half: torch.dtype) -> Iterator[None]:
    """torch's own, which its context manager refuses where there is no CUDA device."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", half)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_types_are_those_of_cuda(name, dtype) -> None:
    with FakeTensorMode():
        with cuda_autocast(torch.bfloat16):
            theirs = OPERATORS[name](torch.empty(8, 8, device="cuda", dtype=dtype)).dtype
        with acting_as("cuda"), torch.autocast("cpu", torch.bfloat16):
            ours = OPERATORS[name](torch.empty(8, 8, dtype=dtype)).dtype
    assert ours == theirs


def test_the_cpu_is_itself_again_afterwards() -> None:
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        x = torch.empty(8, 8, dtype=torch.bfloat16)
        before = {name: operator(x).dtype for name, operator in OPERATORS.items()}
        with acting_as("cuda"):
            assert F.layer_norm(x, (8,)).dtype is torch.float32
        assert {name: operator(x).dtype for name, operator in OPERATORS.items()} == before


def kept(device: str, forward) -> int:
    """Bytes that autograd keeps, result included."""
    with FakeTensorMode(), acting_as(device), LiveBytes() as live:
        y = forward()
        assert y.requires_grad
        return live.current


def test_attention_with_a_bias_that_learns_keeps_no_matrix() -> None:
    tokens, heads, size = 256, 4, 16

    def forward() -> torch.Tensor:
        x = torch.empty(8, heads, tokens, size, requires_grad=True)
        bias = torch.empty(1, heads, tokens, tokens, requires_grad=True)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=bias)

    matrix = 8 * heads * tokens * tokens * 4
    assert kept("cpu", forward) > matrix > 2 * kept("cuda", forward)


def test_a_bias_whose_rows_are_not_aligned_is_padded() -> None:
    with FakeTensorMode(), acting_as("cuda"):
        x = torch.empty(8, 4, 49, 16, requires_grad=True)
        bias = torch.empty(1, 4, 49, 49, requires_grad=True)
        F.scaled_dot_product_attention(x, x, x, attn_mask=bias).sum().backward()
        assert bias.grad is not None
        assert bias.grad.shape == bias.shape


def test_dropout_keeps_a_mask_of_bytes() -> None:
    def forward() -> torch.Tensor:
        return F.dropout(torch.empty(1000, requires_grad=True), 0.1)

    assert kept("cuda", forward) == 4000 + 4000 + 1000
    assert kept("cpu", forward) >= 4000 + 4000 + 4000


def temporaries(device: str, matrices: int) -> int:
    """Bytes alive during a step of AdamW beyond those before it."""
    with FakeTensorMode():
        model = nn.ParameterList(torch.empty(100, 100) for _ in range(matrices))
        for p in model:
            p.grad = torch.empty_like(p)
        optimizer = torch.optim.AdamW(model)
        step_as(device, optimizer)
        optimizer.step()
        with LiveBytes() as live:
            live.track(model, optimizer)
            before = live.current
            optimizer.step()
    return live.peak - before


def test_adamw_steps_all_matrices_at_once_on_cuda_and_one_by_one_on_the_cpu() -> None:
    assert temporaries("cpu", 8) == pytest.approx(temporaries("cpu", 4), abs=100)
    assert temporaries("cuda", 8) == pytest.approx(2 * temporaries("cuda", 4), abs=100)
