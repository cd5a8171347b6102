"""All auxiliaries of a split network, from its spec."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from timm.layers import Format
from torch import Tensor, nn

from ..families import Units, init_convolutions, unit_shapes
from ..spec import LocalSpec
from ..split import block_ranges
from ..tasks import Exit, Task
from . import METHODS
from .auxiliary import Auxiliary
from .momentum import MomentumUnit, first_units
from .overlap import SharedUnit
from .site import Site


def build_auxiliaries(
    backbone: nn.Module,
    units: Units,
    cuts: tuple[int, ...],
    spec: LocalSpec,
    input_size: tuple[int, int, int],
    task: Task,
    criterion: Callable[[Tensor, Tensor], Tensor],
    recompute: Mapping[int, str] = MappingProxyType({}),
) -> list[Auxiliary]:
    """One auxiliary for each block but the last.

    Args:
        backbone: A timm model.
        units: Its units.
        cuts: Index of the last unit of blocks 1 .. K-1.
        spec: Method and settings.
        input_size: ``(channels, height, width)`` of the image.
        task: What is learnt.
        criterion: Its loss.
        recompute: Modes of the auxiliaries that are recomputed in backward, by index.

    Raises:
        ValueError: If a block has too few units for the momentum unit of the one before.
    """
    shapes = unit_shapes(backbone, input_size)
    need_units_to_copy(units, cuts, spec)
    return [
        build_auxiliary(
            units,
            shapes,
            cut,
            spec,
            input_size,
            task,
            criterion,
            place=(j, len(cuts)),
            recompute=recompute.get(j),
        )
        for j, cut in enumerate(cuts)
    ]


def need_units_to_copy(units: Units, cuts: Sequence[int], spec: LocalSpec) -> None:
    """Raises ``ValueError`` if a block has too few for the momentum unit of the one before."""
    if spec.momentum is not None:
        for block in block_ranges(tuple(cuts), len(units))[1:]:
            first_units(units, block, spec.momentum.momentum_units)


def build_auxiliary(
    units: Units,
    shapes: Sequence[torch.Size],
    cut: int,
    spec: LocalSpec,
    input_size: tuple[int, int, int],
    task: Task,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    place: tuple[int, int],
    recompute: str | None = None,
) -> Auxiliary:
    """The auxiliary of a block that ends after unit ``cut``.

    Args:
        units: The backbone's units.
        shapes: Output shape of each of them for one image.
        cut: Index of the block's last unit.
        spec: Method and settings.
        input_size: ``(channels, height, width)`` of the image.
        task: What is learnt.
        criterion: Its loss.
        place: Which auxiliary it is, from 0, and how many there are.
        recompute: Mode in which it is recomputed in backward, if it is.
    """
    widths = tuple(_channels(shape, units) for shape in shapes)
    momentum: MomentumUnit | SharedUnit | None = None
    position = cut + spec.units_ahead
    if spec.overlaps:
        momentum = SharedUnit(units.modules[position], recompute)
    elif spec.momentum is not None:
        source = nn.Sequential(*units.modules[cut + 1 : position + 1])
        momentum = MomentumUnit(source, spec.momentum, units, widths[position], recompute)
    site = Site(
        index=place[0],
        count=place[1],
        channels=widths[position],
        size=_map_size(shapes[position], units),
        next_size=_map_size(shapes[cut + 1], units),
        layout=units.layout,
        image_size=input_size[1:],
        image_channels=input_size[0],
        task=task,
        units=units,
        position=position,
        widths=widths,
        norm=spec.head_norm,
        criterion=criterion,
    )
    head = METHODS[spec.base](site, **spec.head_settings)
    for part in head.children():
        if not isinstance(part, Exit):
            init_convolutions(part)
    return Auxiliary(head, momentum, recompute)


def _channels(shape: torch.Size, units: Units) -> int:
    return shape[1] if units.layout.format is Format.NCHW else shape[-1]


def _map_size(shape: torch.Size, units: Units) -> tuple[int, int]:
    height, width = units.layout.to_map(torch.empty(shape, device="meta")).shape[2:]
    return height, width
