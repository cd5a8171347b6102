"""Mixers: MLP-Mixer, gMLP and ResMLP (one class in timm), and ConvMixer."""

from functools import partial

from timm.layers import Format
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.mlp_mixer import _init_weights as draw_mixer
from torch import nn

from ..layout import Layout
from .units import Units, build_copy, children, fill_layer_scale, fresh, head_part, make_units

LAYER_SCALE = 1e-4


def mixer_units(backbone: MlpMixer) -> Units:
    """Mixer blocks on patch tokens without a class token."""
    return make_units(
        backbone.stem,
        children(backbone, "blocks"),
        head_part(backbone, "head_drop", "head", after=("norm",)),
        init=partial(fresh, draw=_draw),
        layout=Layout(Format.NLC, backbone.stem.grid_size),
        build=build_copy,
    )


def _draw(module: nn.Module, name: str = "") -> None:
    draw_mixer(module, name)
    if isinstance(module, Affine):
        nn.init.ones_(module.alpha)
        nn.init.zeros_(module.beta)
    elif isinstance(module, ResBlock):
        fill_layer_scale(module, LAYER_SCALE)


def convmixer_units(backbone: ConvMixer) -> Units:
    """Depthwise and pointwise convolutions on a map of patches."""
    return make_units(
        backbone.stem,
        children(backbone, "blocks"),
        head_part(backbone, "global_pool", "head_drop", "head"),
        init=fresh,
        build=build_copy,
    )
