"""ResNet with its kin (ResNeXt, SE-, Wide-, Res2Net, ...), and pre-activation ResNet with BiT."""

from functools import partial
from typing import Any

from timm.layers import StdConv2d, StdConv2dSame, create_conv2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from timm.models.resnetv2 import (
    Bottleneck as BottleneckV2,
)
from timm.models.resnetv2 import (
    DownsampleConv,
    PreActBasic,
    PreActBottleneck,
    ResNetV2,
)
from timm.models.resnetv2 import (
    _init_weights as draw_resnetv2,
)
from torch import nn

from .units import (
    Units,
    activation,
    cannot_build,
    chain,
    children,
    fresh,
    head_part,
    init_convolutions,
    make_units,
    staged_blocks,
)


def resnet_units(backbone: ResNet) -> Units:
    """Residual blocks; the CIFAR form has an empty layer4."""
    return make_units(
        chain(backbone, "conv1", "bn1", "act1", "maxpool"),
        children(backbone, "layer1", "layer2", "layer3", "layer4"),
        head_part(backbone, "global_pool", "fc"),
        init=_init_residual_block,
        build=_build_residual_block,
    )


def _init_residual_block(unit: nn.Module) -> None:
    layer: Any
    for layer in unit.modules():
        # Attention modules have layers of other kinds.
        if not isinstance(layer, nn.Conv2d) and hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    init_convolutions(unit)


def _build_residual_block(
    unit: nn.Module, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    if not isinstance(unit, BasicBlock | Bottleneck):
        raise cannot_build(unit)
    if out_channels % unit.expansion:  # as in pruned networks
        raise cannot_build(unit, f" of {out_channels} channels")
    norm_layer = type(unit.bn1)
    kwargs: dict[str, Any] = {}
    if isinstance(unit, Bottleneck):
        groups = unit.conv2.groups
        planes = unit.conv3.out_channels // unit.expansion
        kwargs = {
            "cardinality": groups,
            "base_width": unit.conv2.out_channels * 64 // (planes * groups),
        }
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = downsample_conv(in_channels, out_channels, 1, stride, norm_layer=norm_layer)
    return type(unit)(
        in_channels,
        out_channels // unit.expansion,
        stride,
        downsample,
        norm_layer=norm_layer,
        act_layer=type(unit.act1),
        attn_layer=None if unit.se is None else type(unit.se),
        **kwargs,
    )


def resnetv2_units(backbone: ResNetV2) -> Units:
    """Residual blocks with the norm first; the norm after the last one belongs to the head."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages"),
        head_part(backbone, "head", after=("norm",)),
        init=partial(fresh, draw=partial(draw_resnetv2, zero_init_last=False)),
        build=_build_residual_block_v2,
    )


def _build_residual_block_v2(
    unit: nn.Module, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    if not isinstance(unit, PreActBasic | PreActBottleneck | BottleneckV2):
        raise cannot_build(unit)
    last = unit.conv2 if isinstance(unit, PreActBasic) else unit.conv3
    block: Any = type(unit)
    norm_layer: Any = type(unit.norm1)
    conv_layer: Any = create_conv2d
    if isinstance(unit.conv1, StdConv2d | StdConv2dSame):
        conv_layer = partial(type(unit.conv1), eps=unit.conv1.eps)
    act_layer = activation(unit, unit.norm1)
    return block(
        in_channels,
        out_channels,
        bottle_ratio=unit.conv1.out_channels / last.out_channels,
        stride=stride,
        groups=unit.conv2.groups,
        act_layer=act_layer,
        conv_layer=conv_layer,
        norm_layer=partial(norm_layer, act_layer=act_layer),
        proj_layer=DownsampleConv if stride != 1 or in_channels != out_channels else None,
    )
