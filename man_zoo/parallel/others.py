"""A model of which this process has a part: tensors of the others' parts are on ``meta``."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..local_model import LocalModel


def keep_only(model: LocalModel, own: Sequence[nn.Module], device: torch.device) -> None:
    """Move the model to ``device``, and what only other processes' blocks have to ``meta``."""
    kept = {id(tensor) for block in own for _, tensor in named_tensors(block)}
    of_blocks = {id(tensor) for block in model.blocks for _, tensor in named_tensors(block)}
    for whole in (model, *model.blocks):  # a unit may share a parameter with the backbone itself
        forget(whole, of_blocks - kept)
    model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def forget(module: nn.Module, ids: set[int]) -> None:
    """Move these tensors of a module to ``meta``, by their ids."""
    for layer in module.modules():
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None and id(tensor) in ids:
                setattr(layer, name, _without_data(tensor))


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _without_data(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
