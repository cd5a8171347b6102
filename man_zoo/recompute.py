"""Recomputation: activations forgotten after the forward pass and computed again in backward.

Within a local block every unit, and its auxiliary, can be recomputed by itself. Of an auxiliary,
the two branches of a momentum unit and the head are separate stretches, so that no two of them are
ever alive together. Results stay what they were: torch's checkpoint replays random numbers, and a
recomputed BatchNorm updates copies of its running statistics. In a compiled block the parts that
are recomputed run uncompiled.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .messages import unknown

UNITS, AUXILIARIES, ALL = "units", "auxiliaries", "all"


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``module(*inputs)``; with ``recompute`` only inputs and outputs outlive the forward pass."""
    if recompute and torch.is_grad_enabled():
        return _checkpointed(module, *inputs)
    return module(*inputs)


@torch.compiler.disable(reason="torch.compile takes no checkpoint whose buffers change")
def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), buffers_untouched(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def buffers_untouched(module: nn.Module) -> Iterator[None]:
    """Lend the module copies of its buffers, so that BatchNorm counts no batch a second time."""
    buffers = [
        (layer, name, buffer)
        for layer in module.modules()
        for name, buffer in layer._buffers.items()
        if buffer is not None
    ]
    for layer, name, buffer in buffers:
        layer._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for layer, name, buffer in buffers:
            layer._buffers[name] = buffer


def choose_recompute(
    recompute: str | Sequence[str] | None, names: Sequence[str], auxiliaries: int
) -> tuple[frozenset[int], frozenset[int]]:
    """Indices of the units and of the auxiliaries that are recomputed.

    Args:
        recompute: ``"units"``, ``"auxiliaries"``, ``"all"``, names of units and of auxiliaries
            (``"auxiliaries.0"``; a sequence, or one string with spaces or commas), or ``None``.
        names: Names of the units.
        auxiliaries: How many auxiliaries there are.

    Raises:
        ValueError: For a name that is none of these.
    """
    given = recompute or ()
    wanted = set(given.replace(",", " ").split() if isinstance(given, str) else given)
    own = [f"{AUXILIARIES}.{j}" for j in range(auxiliaries)]
    for name in wanted:
        if name not in {UNITS, AUXILIARIES, ALL, *names, *own}:
            raise unknown("recompute", name, (UNITS, AUXILIARIES, ALL, *names, *own))
    return _indices(wanted, UNITS, names), _indices(wanted, AUXILIARIES, own)


def _indices(wanted: set[str], group: str, names: Sequence[str]) -> frozenset[int]:
    if wanted & {group, ALL}:
        return frozenset(range(len(names)))
    return frozenset(i for i, name in enumerate(names) if name in wanted)
