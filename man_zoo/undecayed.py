"""Parameters without weight decay: those that the backbone names, and their copies."""

from typing import Any

from torch import nn

from .families import Units


def undecayed_names(backbone: Any, units: Units, auxiliaries: nn.Module) -> set[str]:
    """Names in a :class:`LocalModel` of the parameters without weight decay.

    Args:
        backbone: A timm model; if it has no ``no_weight_decay`` there are none.
        units: Its units.
        auxiliaries: Of all blocks; they hold copies of units and new units like them.
    """
    own = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
    ids = {id(p) for name, p in backbone.named_parameters() if name in own}
    # A copy calls its parameters as the unit does.
    endings = tuple(
        f".{name}"
        for unit in units.modules[1:]
        for name, parameter in unit.named_parameters()
        if id(parameter) in ids
    )
    copies = {name for name, _ in auxiliaries.named_parameters() if name.endswith(endings)}
    return {f"backbone.{name}" for name in own} | {f"auxiliaries.{name}" for name in copies}
