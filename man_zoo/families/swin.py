"""Swin Transformer v1 and v2."""

import copy
from functools import partial
from typing import Any

from timm.layers import Format
from timm.models import named_apply
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from timm.models.vision_transformer import init_weights_vit_timm
from torch import nn

from ..layout import Layout
from .units import Units, cannot_build, head_part, make_units, staged_blocks


def swin_units(backbone: SwinTransformer | SwinTransformerV2) -> Units:
    """Window attention blocks; a stage's patch merging belongs to its first block."""
    return make_units(
        backbone.patch_embed,
        staged_blocks(backbone, "layers"),
        head_part(backbone, "head", after=("norm",)),
        init=partial(named_apply, _draw, include_root=True),
        layout=Layout(Format.NHWC),
        build=_build_block,
    )


def _draw(module: nn.Module, name: str = "") -> None:
    init_weights_vit_timm(module, name)
    if isinstance(module, SwinTransformerV2Block):
        # Its norms end the residual branches, so that a fresh block hands on its shortcut.
        norm: Any
        for norm in (module.norm1, module.norm2):
            nn.init.zeros_(norm.weight)


def _build_block(unit: Any, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A copy: masks and position biases are made for one size, and heads for one width."""
    block = unit[-1] if isinstance(unit, nn.Sequential) else unit
    if not (in_channels == out_channels == block.dim and stride == 1):
        widths = f" from {in_channels} to {out_channels} channels with stride {stride}"
        raise cannot_build(block, widths)
    return copy.deepcopy(block)
