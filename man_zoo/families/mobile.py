"""Mobile networks: EfficientNet (MobileNetV2, MNASNet, ...), MobileNetV3 and V4, GhostNet."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import CondConv2d, Conv2dSame, MixedConv2d
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.efficientnet import EfficientNet
from timm.models.ghostnet import GhostNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from .units import (
    Units,
    activation,
    cannot_build,
    chain,
    fresh,
    grandchildren,
    head_part,
    make_units,
)


def efficientnet_units(backbone: EfficientNet) -> Units:
    """Mobile blocks; the convolution after the last one belongs to the head."""
    return make_units(
        chain(backbone, "conv_stem", "bn1"),
        grandchildren(backbone, "blocks"),
        head_part(backbone, "global_pool", "classifier", after=("conv_head", "bn2")),
        init=_init_mobile_block,
        build=_build_mobile_block,
    )


def mobilenetv3_units(backbone: MobileNetV3) -> Units:
    """Mobile blocks; the convolution after the pooling belongs to the head."""
    head = ("global_pool", "conv_head", "norm_head", "act2", "flatten", "classifier")
    return make_units(
        chain(backbone, "conv_stem", "bn1"),
        grandchildren(backbone, "blocks"),
        head_part(backbone, *head),
        init=_init_mobile_block,
        build=_build_mobile_block,
    )


def ghostnet_units(backbone: GhostNet) -> Units:
    """Ghost bottlenecks, and the convolution after them."""
    return make_units(
        chain(backbone, "conv_stem", "bn1", "act1"),
        grandchildren(backbone, "blocks"),
        head_part(backbone, "global_pool", "conv_head", "act2", "flatten", "classifier"),
        init=fresh,
    )


def _init_mobile_block(unit: nn.Module) -> None:
    fresh(unit)
    efficientnet_init_weights(unit)


def _build_mobile_block(unit: Any, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    odd = any(isinstance(layer, CondConv2d | MixedConv2d) for layer in unit.modules())
    if odd or type(unit) not in _KERNELS:
        raise cannot_build(unit)
    settings = _KERNELS[type(unit)](unit)
    if stride != 1 and isinstance(unit, UniversalInvertedResidual) and not _depthwise(unit):
        raise cannot_build(unit, " of stride 2 like one without depthwise convolution")
    norm: Any = getattr(unit, "bn1", None) or unit.pw_exp.bn
    same = any(isinstance(layer, Conv2dSame) for layer in unit.modules())
    return type(unit)(
        in_channels,
        out_channels,
        stride=stride,
        pad_type="same" if same else "",
        act_layer=activation(unit, norm),
        norm_layer=_norm_layer(norm),
        **settings,
    )


def _norm_layer(norm: Any) -> Any:
    """The norm of a block as its constructor takes it."""
    if isinstance(norm, nn.GroupNorm):
        layer: Any = type(norm)
        return partial(layer, group_size=norm.num_channels // norm.num_groups)
    return type(norm)


def _squeeze(se: Any) -> Any:
    """The attention of a block as its constructor takes it."""
    if isinstance(se, nn.Identity):
        return None
    if isinstance(se, SqueezeExcite):
        ratio = se.conv_reduce.out_channels / se.conv_reduce.in_channels
        return partial(SqueezeExcite, rd_ratio=ratio, gate_layer=type(se.gate))
    return type(se)


def _depthwise(unit: Any) -> list[nn.Conv2d]:
    stages = (unit.dw_start, unit.dw_mid, unit.dw_end)
    return [stage.conv for stage in stages if not isinstance(stage, nn.Identity)]


def _convolution(unit: Any) -> dict[str, Any]:
    grouped = unit.conv.groups > 1
    return {
        "kernel_size": unit.conv.kernel_size[0],
        "group_size": _group_size(unit.conv) if grouped else 0,
        "skip": True,
    }


def _separable(unit: Any) -> dict[str, Any]:
    return {
        "dw_kernel_size": unit.conv_dw.kernel_size[0],
        "group_size": _group_size(unit.conv_dw),
        "pw_act": unit.has_pw_act,
        "se_layer": _squeeze(unit.se),
    }


def _inverted(unit: Any) -> dict[str, Any]:
    return {
        "dw_kernel_size": unit.conv_dw.kernel_size[0],
        "group_size": _group_size(unit.conv_dw),
        "exp_ratio": _expansion(unit.conv_pw),
        "se_layer": _squeeze(unit.se),
    }


def _edge(unit: Any) -> dict[str, Any]:
    grouped = unit.conv_exp.groups > 1
    return {
        "exp_kernel_size": unit.conv_exp.kernel_size[0],
        "group_size": _group_size(unit.conv_exp) if grouped else 0,
        "exp_ratio": _expansion(unit.conv_exp),
        "se_layer": _squeeze(unit.se),
    }


def _universal(unit: Any) -> dict[str, Any]:
    def kernel(stage: Any) -> int:
        return 0 if isinstance(stage, nn.Identity) else stage.conv.kernel_size[0]

    scaled = not isinstance(unit.layer_scale, nn.Identity)
    return {
        "dw_kernel_size_start": kernel(unit.dw_start),
        "dw_kernel_size_mid": kernel(unit.dw_mid),
        "dw_kernel_size_end": kernel(unit.dw_end),
        "group_size": next((_group_size(conv) for conv in _depthwise(unit)), 1),
        "exp_ratio": _expansion(unit.pw_exp.conv),
        "se_layer": _squeeze(unit.se),
        "layer_scale_init_value": unit.layer_scale.init_values if scaled else None,
    }


def _group_size(conv: nn.Conv2d) -> int:
    return conv.in_channels // conv.groups


def _expansion(conv: nn.Conv2d) -> float:
    return conv.out_channels / conv.in_channels


# What makes a new block like this one, as keywords of its class.
_KERNELS: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    ConvBnAct: _convolution,
    DepthwiseSeparableConv: _separable,
    InvertedResidual: _inverted,
    EdgeResidual: _edge,
    UniversalInvertedResidual: _universal,
}
