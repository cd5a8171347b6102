"""Names of parameters: without weight decay (the backbone's, and their copies), and in groups."""

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


def below_backbone(groups: Any) -> Any:
    """A backbone's ``group_matcher``, for the same parameters under ``backbone.``."""
    if callable(groups):
        return lambda name: groups(name.removeprefix("backbone."))
    return {name: _pattern_below(pattern) for name, pattern in groups.items()}


def _pattern_below(pattern: Any) -> Any:
    if isinstance(pattern, str):
        # A group, because a pattern may be one of several: "^conv1|bn1".
        return rf"^backbone\.(?:{pattern.replace('^', '')})"
    return [(_pattern_below(sub), *rest) for sub, *rest in pattern]
