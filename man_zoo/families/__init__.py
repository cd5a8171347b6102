"""Adapters: a timm backbone as an ordered list of units, the stem first, and its head.

An adapter is one function that lists the units of a family; everything else (cuts, blocks,
auxiliaries, momentum) works on the :class:`Units` it returns. Units are the backbone's own
modules, never copies, so the backbone's ``state_dict`` stays timm's.
"""

import copy
from collections.abc import Callable

import torch
from timm.models.beit import Beit
from timm.models.byobnet import ByobNet
from timm.models.cait import Cait
from timm.models.convmixer import ConvMixer
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.ghostnet import GhostNet
from timm.models.hgnet import HighPerfGpuNet
from timm.models.inception_next import MetaNeXt
from timm.models.mambaout import MambaOut
from timm.models.maxxvit import MaxxVit
from timm.models.mlp_mixer import MlpMixer
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.nfnet import NormFreeNet
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vgg import VGG
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vovnet import VovNet
from torch import Tensor, nn

from .convnext import convnext_units, mambaout_units, metanext_units
from .densenet import densenet_units
from .maxxvit import maxxvit_units
from .mixer import convmixer_units, mixer_units
from .mobile import efficientnet_units, ghostnet_units, mobilenetv3_units
from .nfnet import nfnet_units
from .regnet import byobnet_units, regnet_units
from .resnet import resnet_units, resnetv2_units
from .swin import swin_units
from .transformer import beit_units, cait_units, eva_units, relpos_units, vit_units
from .units import Part, Units, cannot_build, init_convolutions
from .vgg import hgnet_units, vgg_units, vovnet_units

__all__ = [
    "ADAPTERS",
    "Part",
    "Units",
    "cannot_build",
    "init_convolutions",
    "list_units",
    "map_shapes",
    "resnet_units",
    "unit_shapes",
    "vit_units",
]

ADAPTERS: dict[type[nn.Module], Callable[..., Units]] = {
    ResNet: resnet_units,
    ResNetV2: resnetv2_units,
    RegNet: regnet_units,
    ByobNet: byobnet_units,
    NormFreeNet: nfnet_units,
    DenseNet: densenet_units,
    VGG: vgg_units,
    VovNet: vovnet_units,
    HighPerfGpuNet: hgnet_units,
    EfficientNet: efficientnet_units,
    MobileNetV3: mobilenetv3_units,
    GhostNet: ghostnet_units,
    ConvNeXt: convnext_units,
    MetaNeXt: metanext_units,
    MambaOut: mambaout_units,
    ConvMixer: convmixer_units,
    MlpMixer: mixer_units,
    MaxxVit: maxxvit_units,
    SwinTransformer: swin_units,
    SwinTransformerV2: swin_units,
    VisionTransformer: vit_units,
    VisionTransformerRelPos: relpos_units,
    Beit: beit_units,
    Eva: eva_units,
    Cait: cait_units,
}


def list_units(backbone: nn.Module) -> Units:
    """The units of a timm backbone.

    Raises:
        ValueError: If no adapter knows the backbone's family, or the backbone has an option under
            which its forward pass is no chain of units.
    """
    name = type(backbone).__name__
    family = next((family for family in type(backbone).__mro__ if family in ADAPTERS), None)
    if family is None:
        families = ", ".join(family.__name__ for family in ADAPTERS)
        raise ValueError(f"{name} cannot be split: man_zoo splits {families}.")
    # A subclass may compute something else, which the family's adapter would not know.
    for method in ("forward", "forward_features"):
        if getattr(type(backbone), method) is not getattr(family, method):
            raise ValueError(
                f"{name} cannot be split: it changes {method} of {family.__name__}; "
                f"give it an adapter of its own in man_zoo.families.ADAPTERS."
            )
    return ADAPTERS[family](backbone)


def unit_shapes(backbone: nn.Module, input_size: tuple[int, int, int]) -> list[torch.Size]:
    """Output shape of every unit for one image, batch dimension included, without computing it.

    Args:
        backbone: A timm model of a known family.
        input_size: ``(channels, height, width)`` of the image, in pixels.

    Raises:
        ValueError: If the backbone takes no images of that size.
    """
    return [h.shape for h in _unit_outputs(backbone, input_size)[1]]


def map_shapes(backbone: nn.Module, input_size: tuple[int, int, int]) -> list[torch.Size]:
    """``(1, C, H, W)`` of every unit's output as a map; the last as ``forward_features`` gives it.

    Args:
        backbone: As there.
        input_size: As there.

    Raises:
        ValueError: As there, and for tokens that make no map.
    """
    units, outputs = _unit_outputs(backbone, input_size)
    outputs[-1] = units.tail(outputs[-1])
    return [units.layout.to_map(h).shape for h in outputs]


def _unit_outputs(
    backbone: nn.Module, input_size: tuple[int, int, int]
) -> tuple[Units, list[Tensor]]:
    # On a copy without data, because a forward pass in training mode updates BatchNorm buffers.
    shadow = list_units(copy.deepcopy(backbone).to("meta").eval())
    x = torch.empty(1, *input_size, device="meta")
    outputs = []
    try:
        with torch.no_grad():
            for unit in shadow.modules:
                x = unit(x)
                outputs.append(x)
    except (AssertionError, RuntimeError) as error:  # timm's and torch's words for it
        height, width = input_size[1:]
        raise ValueError(
            f"{type(backbone).__name__} takes no images of {height} x {width} pixels: {error}."
        ) from error
    return shadow, outputs
