"""ConvNeXt v1 and v2, and networks of its build: InceptionNeXt and MambaOut."""

from functools import partial
from typing import Any

from timm.layers import (
    Format,
    GlobalResponseNormMlp,
    LayerNorm,
    LayerNorm2d,
    RmsNorm,
    RmsNorm2d,
    SimpleNorm,
    SimpleNorm2d,
)
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtStage
from timm.models.inception_next import MetaNeXt, MetaNeXtBlock
from timm.models.mambaout import MambaOut
from torch import nn

from ..layout import Layout
from .units import (
    Units,
    fill_layer_scale,
    fresh,
    head_part,
    make_units,
    staged_blocks,
    truncated_normal,
)

LAYER_SCALE = 1e-6


def convnext_units(backbone: ConvNeXt) -> Units:
    """ConvNeXt blocks; a stage's downsampling belongs to its first block."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages"),
        head_part(backbone, "head", after=("norm_pre",)),
        init=partial(fresh, draw=_draw),
        build=_build_block,
    )


def _draw(module: nn.Module, name: str = "") -> None:
    truncated_normal(module)
    if isinstance(module, GlobalResponseNorm):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, ConvNeXtBlock | MetaNeXtBlock):
        fill_layer_scale(module, LAYER_SCALE)


# A block's norm sees (B, H, W, C) unless its MLP is convolutional; that of downsampling never does.
_CHANNELS_FIRST = {LayerNorm: LayerNorm2d, RmsNorm: RmsNorm2d, SimpleNorm: SimpleNorm2d}


def _build_block(unit: Any, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A stage of one block, which downsamples as the network does."""
    block: Any = unit[-1] if isinstance(unit, nn.Sequential) else unit
    norm: Any = type(block.norm)
    return ConvNeXtStage(
        in_channels,
        out_channels,
        kernel_size=block.conv_dw.kernel_size[0],
        stride=stride,
        depth=1,
        ls_init_value=None if block.gamma is None else LAYER_SCALE,  # type: ignore[arg-type]
        conv_mlp=block.use_conv_mlp,
        conv_bias=block.conv_dw.bias is not None,
        use_grn=isinstance(block.mlp, GlobalResponseNormMlp),
        act_layer=type(block.mlp.act),
        norm_layer=partial(_CHANNELS_FIRST.get(norm, norm), eps=block.norm.eps),
        norm_layer_cl=partial(norm, eps=block.norm.eps),
    )


def metanext_units(backbone: MetaNeXt) -> Units:
    """InceptionNeXt's blocks; a stage's downsampling belongs to its first block."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages"),
        head_part(backbone, "head"),
        init=partial(fresh, draw=_draw),
    )


def mambaout_units(backbone: MambaOut) -> Units:
    """Gated convolution blocks; a stage's downsampling belongs to its first block."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages"),
        head_part(backbone, "head"),
        init=partial(fresh, draw=truncated_normal),
        layout=Layout(Format.NHWC),
    )
