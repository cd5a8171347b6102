"""Adapters: a timm backbone as an ordered list of units, the stem first, and its head.

An adapter is one function that lists the units of a family; everything else (cuts, blocks,
auxiliaries, momentum) works on the :class:`Units` it returns. Units are the backbone's own
modules, never copies, so the backbone's ``state_dict`` stays timm's.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Format
from timm.models import named_apply
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

from .layout import Layout


class Part(nn.Module):
    """A stretch of a backbone's forward pass that is no module of its own: a stem or a head.

    It shares the named members (modules and parameters) with the backbone, so that an optimizer,
    DDP or a compiler that is given the part finds exactly the parameters that the part uses.
    """

    def __init__(
        self, backbone: nn.Module, members: Sequence[str], run: Callable[[Any, Tensor], Tensor]
    ) -> None:
        super().__init__()
        for name in members:
            setattr(self, name, getattr(backbone, name))
        # Hidden from nn.Module: the part must not own the whole backbone.
        object.__setattr__(self, "backbone", backbone)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.backbone, x)


@dataclass(frozen=True)
class Units:
    """A backbone as the ordered units that it can be cut between.

    Args:
        names: Unit names as in the backbone's ``state_dict``; the first is ``"stem"``.
        modules: The units themselves, same order.
        head: Pooling, final norm and classifier.
        layout: How features lie between units.
        init: Draws fresh initial weights for a copy of a unit, in place.
        build: Makes a new unit like the given one with other widths and stride,
            ``build(unit, in_channels, out_channels, stride)``; ``None`` where the family has none.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    head: nn.Module
    init: Callable[[nn.Module], None]
    layout: Layout = field(default_factory=Layout)
    build: Callable[[nn.Module, int, int, int], nn.Module] | None = None

    def __len__(self) -> int:
        return len(self.names)


# ResNet and ResNeXt; the CIFAR form has an empty layer4 -------------------------------------------


def resnet_units(backbone: ResNet) -> Units:
    units = {
        f"{stage}.{i}": unit
        for stage in ("layer1", "layer2", "layer3", "layer4")
        for i, unit in getattr(backbone, stage).named_children()
    }
    stem = Part(backbone, ("conv1", "bn1", "act1", "maxpool"), _resnet_stem)
    return Units(
        names=("stem", *units),
        modules=(stem, *units.values()),
        head=Part(backbone, ("global_pool", "fc"), _forward_head),
        init=init_convolutions,
        build=_build_residual_block,
    )


def _resnet_stem(backbone: ResNet, x: Tensor) -> Tensor:
    return backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(x))))


def _forward_head(backbone: Any, x: Tensor) -> Tensor:
    return backbone.forward_head(x)


def init_convolutions(module: nn.Module) -> None:
    """He initialisation by fan-out for convolutions, 1 and 0 for norms (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            layer.reset_parameters()


def _build_residual_block(
    unit: nn.Module, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    assert isinstance(unit, BasicBlock | Bottleneck)
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
        **kwargs,
    )


# Vision transformers ------------------------------------------------------------------------------


def vit_units(backbone: VisionTransformer) -> Units:
    tokens = ("cls_token", "reg_token", "pos_embed")
    stem = ("patch_embed", *tokens, "pos_drop", "patch_drop", "norm_pre")
    head = ("norm", "attn_pool", "fc_norm", "head_drop", "head")
    return Units(
        names=("stem", *(f"blocks.{i}" for i in range(len(backbone.blocks)))),
        modules=(Part(backbone, stem, _vit_stem), *backbone.blocks),
        head=Part(backbone, head, _norm_and_head),
        init=_init_vit_block,
        layout=Layout(Format.NLC, backbone.patch_embed.grid_size, backbone.num_prefix_tokens),
        build=_build_vit_block,
    )


def _vit_stem(backbone: VisionTransformer, x: Tensor) -> Tensor:
    x = backbone._pos_embed(backbone.patch_embed(x))
    return backbone.norm_pre(backbone.patch_drop(x))


def _norm_and_head(backbone: VisionTransformer, x: Tensor) -> Tensor:
    return backbone.forward_head(backbone.norm(x))


def _init_vit_block(block: nn.Module) -> None:
    named_apply(init_weights_vit_timm, block)
    for layer in block.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def _build_vit_block(
    unit: nn.Module, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    """Every block of a plain transformer has the same width, so a new one is a copy."""
    return copy.deepcopy(unit)


ADAPTERS: dict[type[nn.Module], Callable[..., Units]] = {
    ResNet: resnet_units,
    VisionTransformer: vit_units,
}


def list_units(backbone: nn.Module) -> Units:
    """The units of a timm backbone.

    Raises:
        ValueError: If no adapter knows the backbone's family.
    """
    for family in type(backbone).__mro__:
        if family in ADAPTERS:
            return ADAPTERS[family](backbone)
    families = ", ".join(family.__name__ for family in ADAPTERS)
    raise ValueError(f"{type(backbone).__name__} cannot be split: man_zoo splits {families}.")


def unit_shapes(backbone: nn.Module, input_size: tuple[int, int, int]) -> list[torch.Size]:
    """Output shape of every unit for one image, batch dimension included, without computing it.

    Args:
        backbone: A timm model of a known family.
        input_size: ``(channels, height, width)`` of the image, in pixels.
    """
    # On a copy without data, because a forward pass in training mode updates BatchNorm buffers.
    shadow = list_units(copy.deepcopy(backbone).to("meta").eval())
    x = torch.empty(1, *input_size, device="meta")
    shapes = []
    with torch.no_grad():
        for unit in shadow.modules:
            x = unit(x)
            shapes.append(x.shape)
    return shapes
