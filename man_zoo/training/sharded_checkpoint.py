"""The state of training in a checkpoint of sharded blocks: each process writes its share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runs.sharded import list_tensors, read_into, write_tensors
from ..runs.untrusted import read_pickle


def save_sharded(
    modules: Mapping[str, nn.Module], states: Mapping[str, Any], folder: Path, *, is_main: bool
) -> None:
    """Write weights and optimizer states as tensors, and the rest into files as ever.

    A tensor is called after the file that it would be in where nothing is sharded.

    Args:
        modules: By the names of their files.
        states: What else has a state, by the names of its files.
        folder: The checkpoint.
        is_main: Whether this process writes what has no tensors.
    """
    tensors = _tensors_of(modules)
    for file, state in states.items():
        rest = state.state_dict()
        if isinstance(state, Optimizer):
            of_parameters, rest["state"] = rest["state"], {}
            for i, values in of_parameters.items():
                whole = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
                rest["state"][i] = whole
                shares = {key: v for key, v in values.items() if key not in whole}
                tensors |= {f"{file}/{i}.{key}": tensor for key, tensor in shares.items()}
        if is_main:
            torch.save(rest, folder / file)
    write_tensors(tensors, folder)


def load_sharded(modules: Mapping[str, nn.Module], states: Mapping[str, Any], folder: Path) -> None:
    """Read what :func:`save_sharded` wrote, into the modules as they are sharded now."""
    tensors = _tensors_of(modules)
    rests = {file: read_pickle(folder / file) for file in states}
    for file, state in states.items():
        if isinstance(state, Optimizer):
            shares = _like_saved(state, folder, file)
            for (i, key), tensor in shares.items():
                rests[file]["state"].setdefault(i, {})[key] = tensor
                tensors[f"{file}/{i}.{key}"] = tensor
    read_into(tensors, folder)
    for file, state in states.items():
        state.load_state_dict(rests[file])


def _tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{file}/{name}": tensor
        for file, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def _like_saved(optimizer: Optimizer, folder: Path, file: str) -> dict[tuple[int, str], Tensor]:
    """Room for the tensors of an optimizer's state, sharded as their parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {}
    for name, saved in list_tensors(folder, f"{file}/").items():
        number, _, key = name.partition(".")
        parameter, dtype = parameters[int(number)], saved.properties.dtype
        if saved.size == parameter.shape:
            shares[int(number), key] = torch.empty_like(parameter, dtype=dtype)
        else:
            shares[int(number), key] = torch.empty(saved.size, dtype=dtype)
    return shares
