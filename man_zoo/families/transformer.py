"""Plain vision transformers: ViT with DeiT, BEiT, relative positions, EVA with DINOv3, CaiT."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import Format, PatchDropout
from timm.models import named_apply
from timm.models.beit import Beit
from timm.models.cait import Cait, LayerScaleBlock
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from ..layout import Layout
from .units import (
    Part,
    Units,
    build_copy,
    children,
    fill_layer_scale,
    fresh,
    head_part,
    make_units,
    truncated_normal,
)

# Whichever of these a family has: tokens and layers before the first block, and after the last.
_STEM = (
    "patch_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "pos_drop",
    "patch_drop",
    "norm_pre",
)
_HEAD = ("attn_pool", "fc_norm", "head_drop", "head", "head_dist")

_draw_vit = partial(named_apply, init_weights_vit_timm, include_root=True)


def vit_units(backbone: VisionTransformer) -> Units:
    """Transformer blocks of ViT, and of DeiT with its distillation token."""
    return _token_units(backbone, _vit_stem)


def _vit_stem(backbone: VisionTransformer, x: Tensor) -> Tensor:
    x = backbone._pos_embed(backbone.patch_embed(x))
    return backbone.norm_pre(backbone.patch_drop(x))


def beit_units(backbone: Beit) -> Units:
    """BEiT's transformer blocks, each with its own relative positions."""
    if backbone.rel_pos_bias is not None:
        raise _shared(backbone, "use_shared_rel_pos_bias")
    return _token_units(backbone, _beit_stem)


def _beit_stem(backbone: Beit, x: Tensor) -> Tensor:
    x = _class_token_first(backbone, backbone.patch_embed(x))
    if backbone.pos_embed is not None:
        x = x + backbone.pos_embed
    return backbone.pos_drop(x)


def relpos_units(backbone: VisionTransformerRelPos) -> Units:
    """Transformer blocks, each with its own relative positions."""
    if backbone.shared_rel_pos is not None:
        raise _shared(backbone, "shared_rel_pos")
    return _token_units(backbone, _relpos_stem, init=fresh)


def _relpos_stem(backbone: VisionTransformerRelPos, x: Tensor) -> Tensor:
    return _class_token_first(backbone, backbone.patch_embed(x))


def cait_units(backbone: Any) -> Units:
    """CaiT's blocks on patch tokens; the blocks on the class token belong to the head."""
    return make_units(
        Part(backbone, ("patch_embed", "pos_embed", "pos_drop"), _cait_stem),
        children(backbone, "blocks"),
        Part(
            backbone,
            ("cls_token", "blocks_token_only", "norm", "head_drop", "head"),
            _cait_head,
            after=("norm",),  # of every token alone, so of the patches as among the others
        ),
        init=partial(fresh, draw=_draw_cait),
        layout=Layout(Format.NLC, backbone.patch_embed.grid_size),
        build=build_copy,
    )


def _cait_stem(backbone: Cait, x: Tensor) -> Tensor:
    return backbone.pos_drop(backbone.patch_embed(x) + backbone.pos_embed)


def _cait_head(backbone: Cait, x: Tensor) -> Tensor:
    if backbone.blocks_token_only is not None:
        x = backbone.forward_cls(x)
    return backbone.forward_head(backbone.norm(x))


def _draw_cait(module: nn.Module, name: str = "") -> None:
    truncated_normal(module)
    if isinstance(module, LayerScaleBlock):
        fill_layer_scale(module, 1e-4)


class RotaryBlock(nn.Module):
    """A transformer block with the rotary position embedding that all blocks of its network share.

    Args:
        block: ``block(x, rope=...)``.
        rope: The embedding, which has no parameters.
        layout: Of the tokens.
    """

    def __init__(self, block: nn.Module, rope: Any, layout: Layout) -> None:
        super().__init__()
        self.block = block
        self.rope = rope
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        grid = self.layout.grid_of(x.shape[1] - self.layout.prefix_tokens)
        return self.block(x, rope=self.rope.get_embed(shape=grid))


def eva_units(backbone: Eva) -> Units:
    """Transformer blocks of EVA, EVA-02, DINOv3 and the Perception Encoder."""
    units = _token_units(backbone, _eva_stem)
    if backbone.rope is None:
        return units
    if any(True for _ in backbone.rope.parameters()):
        raise _shared(backbone, "rope_type='mixed'")
    if getattr(backbone.rope, "aug_active", False):
        raise _shared(backbone, "rope_shift_coords, rope_jitter_coords or rope_rescale_coords")
    if backbone.patch_drop is not None:
        raise _shared(backbone, "patch_drop_rate")
    rotary = (RotaryBlock(block, backbone.rope, units.layout) for block in units.modules[1:])
    return replace(units, modules=(units.modules[0], *rotary))


def _eva_stem(backbone: Eva, x: Tensor) -> Tensor:
    x, _ = backbone._pos_embed(backbone.patch_embed(x))
    return backbone.norm_pre(x)


def _token_units(backbone: Any, stem: Any, init: Any = _draw_vit) -> Units:
    def present(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if getattr(backbone, name, None) is not None)

    return make_units(
        Part(backbone, present(_STEM), stem),
        children(backbone, "blocks"),
        head_part(backbone, *present(_HEAD), after=("norm",)),
        init=init,
        layout=_token_layout(backbone),
        build=build_copy,
    )


def _token_layout(backbone: Any) -> Layout:
    # Attention pooling has weights, which blocks cannot share; nearest to it is the mean.
    pool = backbone.global_pool if backbone.global_pool in ("token", "max", "avgmax") else "avg"
    drops_patches = isinstance(getattr(backbone, "patch_drop", None), PatchDropout)
    return Layout(
        Format.NLC,
        backbone.patch_embed.grid_size,
        backbone.num_prefix_tokens,
        pool,
        dynamic=getattr(backbone, "dynamic_img_size", False) and not drops_patches,
    )


def _class_token_first(backbone: Any, x: Tensor) -> Tensor:
    if backbone.cls_token is None:
        return x
    return torch.cat((backbone.cls_token.expand(len(x), -1, -1), x), dim=1)


def _shared(backbone: nn.Module, option: str) -> ValueError:
    """The error for an option that makes all blocks read one tensor that is computed once."""
    return ValueError(
        f"{type(backbone).__name__} with {option} cannot be split: "
        "its blocks share a tensor that is computed anew in every forward pass."
    )
