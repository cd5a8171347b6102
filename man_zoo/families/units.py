"""What an adapter returns, and the helpers that adapters share."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

from timm.models import named_apply
from torch import Tensor, nn

from ..layout import Layout

Build = Callable[[nn.Module, int, int, int], nn.Module]


class Part(nn.Module):
    """A stretch of a backbone's forward pass that is no module of its own: a stem or a head.

    It shares the named members (modules and parameters) with the backbone, so that an optimizer,
    DDP or a compiler that is given the part finds exactly the parameters that the part uses. A
    parameter that is replaced here, as FSDP does, is replaced there as well.
    MAN copies units but never the stem or the head, so no other unit may be a part: a copy of it
    would hold a copy of the backbone.

    Args:
        backbone: Whose part it is.
        members: Names of what runs in it.
        run: The stretch itself.
        after: Of a head, the names of what still belongs to ``forward_features``, as ``Units.tail``
            runs it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        members: Sequence[str],
        run: Callable[[Any, Tensor], Tensor],
        after: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.after = tuple(after)
        # Hidden from nn.Module: the part must not own the whole backbone.
        object.__setattr__(self, "backbone", backbone)
        for name in members:
            setattr(self, name.replace(".", "_"), attrgetter(name)(backbone))
        self.run = run

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Parameter):
            setattr(self.backbone, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.backbone, x)


@dataclass(frozen=True)
class Units:
    """A backbone as the ordered units that it can be cut between.

    Args:
        names: Unit names as in the backbone's ``state_dict``; the first is ``"stem"``.
        modules: The units themselves, same order.
        head: Pooling, final norm and classifier.
        layout: How features lie between units.
        init: Draws fresh initial weights for a copy of a unit, in place.
        build: Makes a new unit like the given one with other widths and stride,
            ``build(unit, in_channels, out_channels, stride)``; ``ValueError`` for a unit or widths
            that the family cannot build, ``None`` where it builds nothing.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    head: nn.Module
    init: Callable[[nn.Module], object]
    layout: Layout = field(default_factory=Layout)
    build: Build | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def tail(self) -> nn.Module:
        """What ``forward_features`` does after the last unit: a final norm, say, or nothing."""
        head: Any = self.head
        if not getattr(head, "after", ()):
            return nn.Identity()
        return Part(head.backbone, head.after, partial(_run_after, head.after))


def make_units(
    stem: nn.Module, units: Mapping[str, nn.Module], head: nn.Module, **others: Any
) -> Units:
    """:class:`Units` from the stem and the other units by name, in order."""
    return Units(("stem", *units), (stem, *units.values()), head, **others)


# Pieces of a backbone -----------------------------------------------------------------------------


def chain(backbone: nn.Module, *names: str) -> nn.Sequential:
    """Modules of the backbone that run in a row, as one module."""
    return nn.Sequential(*(attrgetter(name)(backbone) for name in names))


def head_part(backbone: nn.Module, *members: str, after: Sequence[str] = ()) -> Part:
    """The backbone's ``forward_head``, behind the modules in ``after`` (a final norm, say)."""
    return Part(backbone, (*after, *members), partial(_run_head, tuple(after)), after)


def _run_head(after: Sequence[str], backbone: Any, x: Tensor) -> Tensor:
    return backbone.forward_head(_run_after(after, backbone, x))


def _run_after(after: Sequence[str], backbone: Any, x: Tensor) -> Tensor:
    for name in after:
        x = attrgetter(name)(backbone)(x)
    return x


def children(backbone: nn.Module, *paths: str) -> dict[str, nn.Module]:
    """The children of the modules at ``paths``, by their names in the backbone."""
    return {
        f"{path}.{name}": child
        for path in paths
        for name, child in attrgetter(path)(backbone).named_children()
    }


def grandchildren(backbone: nn.Module, path: str) -> dict[str, nn.Module]:
    """The blocks of a network whose module at ``path`` holds stages, and a stage its blocks."""
    return children(backbone, *children(backbone, path))


def staged_blocks(
    backbone: nn.Module, path: str, entry: str = "downsample"
) -> dict[str, nn.Module]:
    """The ``blocks`` of the stages at ``path``.

    What a stage does at its ``entry``, if it has such, belongs to its first block's unit.
    """
    units: dict[str, nn.Module] = {}
    for stage_path, stage in children(backbone, path).items():
        blocks = children(backbone, f"{stage_path}.blocks")
        first = next(iter(blocks))
        before = getattr(stage, entry, None)
        if not (before is None or isinstance(before, nn.Identity)):
            blocks[first] = nn.Sequential(before, blocks[first])
        units |= blocks
    return units


# Fresh weights ------------------------------------------------------------------------------------


def fresh(unit: nn.Module, draw: Callable[..., object] | None = None) -> None:
    """Reset every layer of a unit, then draw weights as the family does.

    Args:
        unit: A copy of a unit.
        draw: ``draw(module, name)``, as timm's ``named_apply`` takes it; layers keep their own
            defaults if left out.
    """
    layer: Any
    for layer in unit.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    if draw is not None:
        named_apply(draw, unit, include_root=True)


def init_convolutions(module: nn.Module) -> None:
    """He initialisation by fan-out for convolutions, 1 and 0 for norms (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            layer.reset_parameters()


def truncated_normal(module: nn.Module, name: str = "") -> None:
    """Truncated normal of deviation 0.02 for convolutions and linear layers, 0 for biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fill_layer_scale(block: nn.Module, value: float) -> None:
    """Layer scales (Touvron et al. 2021) are bare parameters, so that no layer resets them."""
    for name in ("gamma", "gamma_1", "gamma_2", "ls1", "ls2"):
        scale = getattr(block, name, None)
        if isinstance(scale, nn.Parameter):
            nn.init.constant_(scale, value)


# New units ----------------------------------------------------------------------------------------


def build_copy(unit: nn.Module, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """``build`` of a network whose blocks all have one width and size: a copy."""
    return copy.deepcopy(unit)


def cannot_build(unit: nn.Module, widths: str = "") -> ValueError:
    """The error for a unit that cannot be built; the caller raises it."""
    return ValueError(
        f"man_zoo cannot build a new {type(unit).__name__}{widths}, which auglocal and "
        "learnable_units need; use another method or other cuts."
    )


def activation(unit: nn.Module, norm: Any) -> type[nn.Module]:
    """The activation that a norm of ``unit`` ends with, to build another such norm.

    Raises:
        ValueError: For a norm that is its own activation, like EvoNorm.
    """
    if not hasattr(norm, "act"):
        raise cannot_build(unit, f" with {type(norm).__name__}")
    return type(norm.act)
