"""What a training step costs: the peak bytes of live tensors and the arithmetic.

**Memory.** A storage counts its bytes once, from the moment an operator first reads or returns it
(or :meth:`LiveBytes.track` names it) until it is freed. Weights, gradients, optimizer state,
inputs, activations and whatever autograd keeps for backward all count; views and in-place
operators add nothing. The figure does not depend on an allocator: there is no rounding, caching
or fragmentation in it, and the workspace a kernel takes and returns within one operator is not
seen.

**Arithmetic.** :mod:`man_zoo.arithmetic` counts matrix products, convolutions and attention, two
per multiply-add, forward, backward and recomputed; elementwise operators, normalisation and pooling
count zero.

**The rules of a step.** The step is a steady one: :func:`measure` counts the arithmetic of a first
run, after which the optimizer's state exists, and the memory of a second. The peak therefore
includes weights, momentum and the input batch. With float32, SGD with momentum, gradients set to
None at the start of the step and a batch of 128 at 224x224 these rules give, on fake CPU tensors
(timm 1.0.31; kernels of other devices may keep other tensors for backward):

=============  ==========  ====================  ==========
network        end to end  timm's checkpointing  arithmetic
=============  ==========  ====================  ==========
ResNet-101     15.56 GiB   6.02 GiB              1.33
ResNet-152     21.70 GiB   8.14 GiB              1.33
ViT-B/16       14.96 GiB   3.04 GiB              1.22
=============  ==========  ====================  ==========

A first step is lower by exactly the bytes of the momentum, which it allocates after its peak.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arithmetic import flop_counter
from .operands import tensors_among

T = TypeVar("T")


class LiveBytes(TorchDispatchMode):
    """Follow live storages while active; ``current`` and ``peak`` are in bytes.

    Tensors that exist beforehand count from :meth:`track`, or else from their first use. Storages
    already seen are followed to their end, also after the mode has been left. Under
    ``FakeTensorMode`` enter this mode last, so that it sees the operators that were called and
    not those a fake kernel is made of. A tensor without one storage of its own (sparse, nested)
    raises ``NotImplementedError``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._seen: dict[int, tuple[weakref.ref, int]] = {}

    def track(self, *things: object) -> LiveBytes:
        """Count the tensors of modules, optimizers, tensors and containers of these."""
        for tensor in tensors_of(things):
            self._see(tensor)
        return self

    def reset_peak(self) -> None:
        """Let the peak start again from what is alive now."""
        self.peak = self.current

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in tensors_among((*args, *kwargs.values(), out)):
            self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        """Count a storage when it is new, and the difference when it was resized.

        PyTorch keeps the Python object of a storage for as long as the storage lives, so its id
        is its identity and its weak reference dies with the bytes, whoever held them.
        """
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            ref, known = self._seen[key]
            if size == known:
                return
        elif tensor.device.type == "meta":  # has a shape, but no bytes
            return
        else:
            ref, known = weakref.ref(storage, lambda _: self._forget(key)), 0
        self._seen[key] = ref, size
        self._add(size - known)

    def _add(self, size: int) -> None:
        self.current += size
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int) -> None:
        self._add(-self._seen.pop(key)[1])


def tensors_of(things: object) -> Iterator[Tensor]:
    """The tensors in nested containers of modules, optimizers and tensors, with gradients."""
    for leaf in tree_leaves(things):
        if isinstance(leaf, Tensor):
            yield leaf
            if leaf.is_leaf and leaf.grad is not None:
                yield leaf.grad
        elif isinstance(leaf, nn.Module):
            yield from tensors_of([*leaf.parameters(), *leaf.buffers()])
        elif isinstance(leaf, Optimizer):
            yield from tensors_of([leaf.param_groups, list(leaf.state.values())])


class StepCost(NamedTuple):
    """The cost of one training step."""

    peak_bytes: int
    flops: int

    @property
    def peak_gib(self) -> float:
        """The peak in GiB (2**30 bytes)."""
        return self.peak_bytes / 2**30


def measure(step: Callable[[], object], *, resident: Iterable[object]) -> StepCost:
    """Run ``step`` twice: the first run counts the arithmetic, the second the memory.

    The two do not share a run: with ``FlopCounterMode`` active recomputed activations stay alive
    longer, which more than doubles the peak of a checkpointed ResNet-101 (14.47 for 6.02 GiB).
    ``resident`` names what lives outside the step: modules, optimizers, input tensors. What it
    leaves out counts only from its first use within the step, which may be after the peak.
    """
    with flop_counter() as arithmetic:
        step()
    with LiveBytes() as live:
        live.track(list(resident))
        step()
    return StepCost(live.peak, arithmetic.get_total_flops())


@contextmanager
def fake(thing: T) -> Iterator[T]:
    """Enter ``FakeTensorMode`` with a deep copy of ``thing`` whose tensors are fake.

    ``thing`` is a module or any other object to be copied; inputs and optimizers are made inside.
    Fake tensors have shapes and storages but no values: a step that reads one (``item()``) raises
    ``DataDependentOutputException``, and a real tensor hidden in a closure of ``thing`` is not
    copied and raises ``AssertionError`` on use. Build models outside: some constructors read
    values.
    """
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        faked = copy.deepcopy(thing)
    with mode:
        yield faked


def backprop_cost(model: nn.Module, batch_shape: tuple[int, ...]) -> StepCost:
    """The cost of an end-to-end step: the baseline every local learner stands beside.

    ``model`` is a float32 classifier and is left as it was. The step is training mode,
    cross-entropy and SGD with momentum, on fake tensors.
    """
    with fake(model) as model:
        model.train()
        images = torch.empty(batch_shape)
        labels = torch.empty(batch_shape[0], dtype=torch.long)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return measure(step, resident=[model, optimizer, images, labels])
