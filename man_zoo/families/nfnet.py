"""Networks without norms: NFNet and its kin."""

from functools import partial

from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame
from timm.models.nfnet import NormFreeBlock, NormFreeNet
from torch import nn

from .units import Units, fresh, grandchildren, head_part, make_units


def nfnet_units(backbone: NormFreeNet) -> Units:
    """Norm-free residual blocks."""
    return make_units(
        backbone.stem,
        grandchildren(backbone, "stages"),
        head_part(backbone, "head", after=("final_conv", "final_act")),
        init=partial(fresh, draw=_draw),
    )


def _draw(module: nn.Module, name: str = "") -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, ScaledStdConv2d | ScaledStdConv2dSame):
            nn.init.ones_(module.gain)
    elif isinstance(module, NormFreeBlock):
        # One of the two is 0, so that a fresh block hands on its shortcut.
        if module.skipinit_gain is not None:
            nn.init.zeros_(module.skipinit_gain)
        else:
            nn.init.zeros_(module.conv3.gain)
