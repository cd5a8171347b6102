"""What lives beyond a block's turn: weights, optimizer state, averages, gradients that add up."""

from torch import nn

from ..meter import tensors_of
from .cost import CostModel, gradient_bytes, remember
from .piece import bytes_of


def resident(model: CostModel) -> int:
    """Bytes of the backbone, its optimizers' state, its average, the images and the target."""
    return remember(model.of_units, "resident", lambda: _all_resident(model))


def _all_resident(model: CostModel) -> int:
    pieces = nn.ModuleList([*model.units.modules, model.head])
    unused = _weights(nn.ModuleList([model.backbone, pieces])) - _weights(pieces)
    used = head_resident(model) + sum(unit_resident(model, i) for i in range(len(model.units)))
    return used + unused + model.image_bytes + model.target_bytes


def unit_resident(model: CostModel, i: int) -> int:
    """Bytes of unit ``i``, and of its optimizer's state."""
    return remember(
        model.of_units,
        ("resident", i),
        lambda: _resident(model, model.units.modules[i], averaged=model.setting.model_ema),
    )


def head_resident(model: CostModel) -> int:
    """The same of the head."""
    return remember(
        model.of_units,
        "head resident",
        lambda: _resident(model, model.head, averaged=model.setting.model_ema),
    )


def source_bytes(model: CostModel, start: int) -> int:
    """Bytes of what a block before unit ``start`` copies again after every step, if it does."""
    momentum = model.spec.momentum
    if momentum is None or not momentum.ema:
        return 0
    copied = model.units.modules[start : start + momentum.momentum_units]
    return sum(bytes_of(p) for unit in copied for p in unit.parameters())


def restored_bytes(model: CostModel, cut: int, place: tuple[int, int]) -> int:
    """Bytes of the images un-normalised, where the auxiliaries look at them."""
    return model.image_bytes * model.auxiliary(cut, place).needs_image


def auxiliary_resident(model: CostModel, cut: int, place: tuple[int, int]) -> int:
    """Bytes of the auxiliary after unit ``cut``, and of its optimizer's state."""
    return remember(
        model.of_auxiliaries,
        ("resident", cut, place),
        lambda: _resident(model, model.auxiliary(cut, place)),
    )


def _resident(model: CostModel, module: nn.Module, averaged: bool = False) -> int:
    """Bytes of weights, of the optimizer's state, and of what else lives as long.

    Args:
        module: Whose weights.
        averaged: Whether an average of them is kept.
    """
    gradients = gradient_bytes(module) if model.setting.keeps_gradients else 0
    weights = _weights(module)
    return weights * (1 + averaged) + model.optimizer(module).state + gradients


def block_accumulated(model: CostModel, block: range, end: int, place: tuple[int, int]) -> int:
    """Bytes of a block's gradients, where they live until its optimizer has stepped.

    DDP's buckets live on.
    """
    last = end == len(model.units) - 1
    ends = model.head if last else model.auxiliary(end, place)
    return _accumulated(model, ends) + sum(unit_accumulated(model, i) for i in block)


def unit_accumulated(model: CostModel, i: int) -> int:
    """The same of unit ``i``."""
    return remember(
        model.of_units,
        ("accumulated", i),
        lambda: _accumulated(model, model.units.modules[i]),
    )


def _accumulated(model: CostModel, module: nn.Module) -> int:
    alone = model.setting.processes == 1 and model.setting.keeps_gradients
    return gradient_bytes(module) if alone else 0


def _weights(module: nn.Module) -> int:
    return sum({id(t): bytes_of(t) for t in tensors_of(module)}.values())
