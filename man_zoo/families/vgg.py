"""VGG, and later networks of plain convolutions: VoVNet and HGNet."""

from functools import partial

from timm.models.hgnet import HighPerfGpuNet, LearnableAffineBlock
from timm.models.vgg import VGG
from timm.models.vovnet import VovNet
from torch import nn

from .units import (
    Units,
    children,
    fresh,
    head_part,
    init_convolutions,
    make_units,
    staged_blocks,
)


def vgg_units(backbone: VGG) -> Units:
    """A convolution, its norm and activation, and the pooling before it, if any."""
    groups: dict[str, list[nn.Module]] = {}
    waiting: list[nn.Module] = []
    after: list[str] = []
    for name, layer in children(backbone, "features").items():
        if isinstance(layer, nn.MaxPool2d):
            waiting, after = [layer], [name]
        elif isinstance(layer, nn.Conv2d):
            groups[name] = [*waiting, layer]
            waiting, after = [], []
        else:
            groups[next(reversed(groups))].append(layer)
    stem, *units = groups
    return make_units(
        nn.Sequential(*groups[stem]),
        {name: nn.Sequential(*groups[name]) for name in units},
        head_part(backbone, "pre_logits", "head", after=after),
        init=init_convolutions,
        build=_build_convolution,
    )


def _build_convolution(
    unit: nn.Module, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    """As in the network, pooling and not the convolution halves the size."""
    layers: list[nn.Module] = [nn.MaxPool2d(2, stride)] if stride != 1 else []
    layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
    if any(isinstance(layer, nn.BatchNorm2d) for layer in unit.children()):
        layers.append(nn.BatchNorm2d(out_channels))
    layers.append(type(list(unit.children())[-1])())
    return nn.Sequential(*layers)


def vovnet_units(backbone: VovNet) -> Units:
    """One-shot aggregation blocks; a stage's pooling belongs to its first block."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages", entry="pool"),
        head_part(backbone, "head"),
        init=partial(fresh, draw=_draw),
    )


def hgnet_units(backbone: HighPerfGpuNet) -> Units:
    """Aggregation blocks; a stage's downsampling belongs to its first block."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages"),
        head_part(backbone, "head"),
        init=partial(fresh, draw=_draw),
    )


def _draw(module: nn.Module, name: str = "") -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, LearnableAffineBlock):
        nn.init.ones_(module.scale)
        nn.init.zeros_(module.bias)
