"""Pooling without memory is torch's pooling, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from man_zoo.meter import LiveBytes
from man_zoo.pool import average_pool

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("height", "width", "size"), [(16, 8, 8), (8, 8, 1), (14, 14, 8), (6, 9, 3)]
)
def test_same_values_and_gradients_as_torch(height, width, size, layout):
    x = torch.randn(2, 3, height, width, dtype=torch.float64).to(memory_format=layout)
    ours, torchs = (x.clone(memory_format=layout).requires_grad_() for _ in range(2))
    grad = torch.randn(2, 3, size, size, dtype=torch.float64)
    pooled, expected = average_pool(ours, size), F.adaptive_avg_pool2d(torchs, size)
    # Not to the last digit: torch's order of adding up hangs on the processor.
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    pooled.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, torchs.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_has_the_layout_of_the_input(layout):
    x = torch.randn(2, 3, 8, 8).to(memory_format=layout).requires_grad_()
    seen = []
    y = x * 1
    y.register_hook(seen.append)
    average_pool(y, 1).sum().backward()
    assert seen[0].is_contiguous(memory_format=layout)


def test_the_input_is_not_kept():
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    with LiveBytes() as live:
        y = average_pool(x * 1, 8)
    assert live.current <= x.untyped_storage().nbytes() + 2 * y.untyped_storage().nbytes()
