"""DenseNet. A unit is a whole dense block or a transition: inside, every layer reads all others."""

from functools import partial

from timm.models.densenet import DenseBlock, DenseNet, DenseTransition
from torch import nn

from .units import Units, chain, children, fresh, head_part, make_units


def densenet_units(backbone: DenseNet) -> Units:
    """Dense blocks and transitions."""
    features = children(backbone, "features")
    units = {n: m for n, m in features.items() if isinstance(m, DenseBlock | DenseTransition)}
    names = list(features)
    stem = names[: names.index(next(iter(units)))]
    after = names[names.index(list(units)[-1]) + 1 :]
    return make_units(
        chain(backbone, *stem),
        units,
        head_part(backbone, "global_pool", "head_drop", "classifier", after=after),
        init=partial(fresh, draw=_draw),
    )


def _draw(module: nn.Module, name: str = "") -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
