"""Which modules cost the same, so that one of them is measured for all."""

from typing import Any

from torch import nn

_PLAIN = (bool, int, float, str, tuple, type(None))  # attributes that say what a layer costs


def signature(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules that cost the same: their types, plain attributes and shapes.

    Of a number with a fraction (a rate, an epsilon) it counts only whether it is 0.
    """
    return tuple(
        (
            type(layer),
            repr(
                [
                    (k, bool(v) if isinstance(v, float) else v)
                    for k, v in vars(layer).items()
                    if isinstance(v, _PLAIN)
                ]
            ),
            tuple((p.shape, p.requires_grad) for p in layer.parameters(recurse=False)),
        )
        for layer in module.modules()
    )
