"""RegNet and the networks of ByobNet (RepVGG, MobileOne, CLIP's ResNets, MobileViT, ...)."""

from functools import partial

from timm.layers import SEModule
from timm.models.byobnet import ByobNet
from timm.models.byobnet import _init_weights as draw_byobnet
from timm.models.regnet import Bottleneck, PreBottleneck, RegNet
from timm.models.regnet import _init_weights as draw_regnet
from torch import nn

from .units import (
    Units,
    activation,
    cannot_build,
    children,
    fresh,
    grandchildren,
    head_part,
    make_units,
)


def regnet_units(backbone: RegNet) -> Units:
    """Bottlenecks."""
    return make_units(
        backbone.stem,
        children(backbone, "s1", "s2", "s3", "s4"),
        head_part(backbone, "head", after=("final_conv",)),
        init=partial(fresh, draw=partial(draw_regnet, zero_init_last=True)),
        build=_build_bottleneck,
    )


def _build_bottleneck(
    unit: nn.Module, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    if not isinstance(unit, Bottleneck | PreBottleneck):
        raise cannot_build(unit)
    convs = (unit.conv1, unit.conv2, unit.conv3)
    conv1, conv2, conv3 = (getattr(conv, "conv", conv) for conv in convs)
    norm = unit.norm1 if isinstance(unit, PreBottleneck) else unit.conv1.bn
    ratio = conv1.out_channels / conv3.out_channels
    inner = round(out_channels * ratio)
    group_size = min(conv2.in_channels // conv2.groups, inner)
    if inner % group_size:
        raise cannot_build(unit, f" of {out_channels} channels in groups of {group_size}")
    squeezed = unit.se.fc1.out_channels if isinstance(unit.se, SEModule) else 0
    return type(unit)(
        in_channels,
        out_channels,
        stride,
        bottle_ratio=ratio,
        group_size=group_size,
        se_ratio=squeezed / conv1.in_channels,
        downsample="" if unit.downsample is None else "conv1x1",
        linear_out=isinstance(unit, Bottleneck) and isinstance(unit.act3, nn.Identity),
        act_layer=activation(unit, norm),
        norm_layer=type(norm),
    )


def byobnet_units(backbone: ByobNet) -> Units:
    """Blocks of any of ByobNet's kinds."""
    return make_units(
        backbone.stem,
        grandchildren(backbone, "stages"),
        head_part(backbone, "head", after=("final_conv",)),
        init=partial(fresh, draw=partial(draw_byobnet, zero_init_last=True)),
    )
