"""FSDP2: every block's parameters, gradients and optimizer state divided among processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor, Shard

from ..local_model import LocalModel


def shard_model(model: LocalModel, mesh: DeviceMesh) -> None:
    """Shard a model's blocks, in place; ``model.local_step`` then trains them as before.

    A block is whole from its forward to the end of its backward, and the next one is gathered while
    its backward runs. Between steps a process holds its share of everything. ``model(images)`` and
    ``forward_exits`` gather all blocks, weights only, so all processes call them equally often, or
    within :func:`gathered`. Optimizers are made afterwards, over parameters that are DTensors now.

    Args:
        model: On its device; the mesh's first process's weights become everyone's.
        mesh: One-dimensional: the processes that share.

    Raises:
        ValueError: If neighbouring blocks share units (overlap).
    """
    model.spec.need_whole_units("sharding")
    blocks = [_shard(block, mesh) for block in model.blocks]
    share_comm_ctx(blocks)
    for block, following in pairwise(blocks):
        block.register_forward_hook(_gather_early(following))
    # Neither goes through the blocks' own forward, which is where FSDP gathers.
    whole = (model.backbone, "forward"), (model, "forward"), (model, "forward_exits")
    for owner, name in whole:
        setattr(owner, name, _gathering(getattr(owner, name), blocks))
    for name in ("reset_classifier", "set_input_size"):
        setattr(model, name, _refusing(name))


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network that is not trained, e.g. an average; to be run within :func:`gathered`."""
    _shard(network, mesh)


def _shard(module: nn.Module, mesh: DeviceMesh) -> Any:
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, group=mesh.get_group(), group_src=0)
    return fully_shard(
        module,
        mesh=mesh,
        reshard_after_forward=False,  # backward follows at once
        shard_placement_fn=lambda parameter: _evenly(parameter, mesh.size()),
    )


def _evenly(parameter: nn.Parameter, processes: int) -> Shard:
    """The first dimension that divides evenly: a (1, N, C) embedding's first would be one's."""
    even = (i for i, size in enumerate(parameter.shape) if size % processes == 0)
    return Shard(next(even, 0))


def _gather_early(following: FSDPModule) -> Callable[..., None]:
    """A hook after a block's forward: the next block is gathered while the backward runs."""

    @torch._dynamo.disable
    def hook(*_: object) -> None:
        if torch.is_grad_enabled():
            following.unshard(async_op=True)

    return hook


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Within, modules that are sharded are whole: a process may run them as often as it likes.

    Called by all processes. What is whole already, or not sharded at all, stays as it is.
    """
    divided = [m for m in modules if isinstance(m, FSDPModule) and _is_divided(m)]
    for module in divided:
        module.unshard()
    try:
        yield
    finally:
        for module in divided:
            module.reshard()


def _is_divided(module: nn.Module) -> bool:
    return isinstance(next(module.parameters()), DTensor)


def _gathering(call: Callable[..., Any], blocks: Sequence[nn.Module]) -> Callable[..., Any]:
    @wraps(call)
    def gathering(*args: Any, **keywords: Any) -> Any:
        with gathered(*blocks):
            return call(*args, **keywords)

    return gathering


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError(
            f"{name} makes new layers, and this model's are sharded over processes already; "
            "call it before shard_model."
        )

    return refuse
