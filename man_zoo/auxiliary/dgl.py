"""DGL: decoupled greedy learning with an MLP-SR head (Belilovsky et al., arXiv 1901.08164).

The head averages the features down, mixes channels with 1x1 convolutions and classifies. The
wide head is the one in the release of MAN++ (arXiv 2507.16279); those that look at neighbours are
ours.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import chain

from torch import Tensor, nn

from ..layout import Layout
from ..messages import unknown
from ..pool import average_pool
from .head import Head
from .site import Site


class DGLHead(Head):
    """A classifier on the features, trained by the task loss.

    Args:
        site: Where the head stands.
        head: ``"narrow"`` (MLP-SR, as in the DGL paper), ``"wide"`` (as in the MAN++ release),
            ``"conv"``, ``"strided"`` or ``"separable"`` (two 3x3 convolutions on a map of 8x8, one
            strided, both strided, or depthwise), or ``"token"`` (LayerNorm and linear on the class
            token, as MAN++ uses on ViT; where the backbone pools otherwise, on that). Dense tasks
            have one head.
        width: Channels within the head; 128 in a wide one by default, 64 in one that convolves. The
            narrow head keeps the site's.
    """

    def __init__(self, site: Site, *, head: str = "narrow", width: int | None = None) -> None:
        super().__init__(site)
        if head not in HEADS:
            raise unknown("head", head, HEADS)
        self.view: Callable[[Tensor], Tensor]
        self.classifier: nn.Module
        exit = site.exit()
        if exit is not None:
            self.view, self.classifier = site.layout.to_map, exit
        else:
            chosen = {} if width is None else {"width": width}
            self.view, self.classifier = HEADS[head](site, **chosen)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.view(features))


Layers = tuple[Callable[[Tensor], Tensor], nn.Sequential]


def _narrow(site: Site, **ignored: int) -> Layers:
    channels, reduced = site.channels, math.ceil(site.size[0] / 4)
    pooled = min(reduced, 2)
    features = channels * pooled**2
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(reduced)]
    for _ in range(3):
        layers += _mix(site, channels, channels)
    layers += [nn.AdaptiveAvgPool2d(pooled), nn.Flatten()]
    for _ in range(2):
        layers += [nn.Linear(features, features, bias=False), site.norm1d(features), nn.ReLU(True)]
    layers += [nn.Linear(features, site.num_classes)]
    return site.layout.to_map, nn.Sequential(*layers)


def _wide(site: Site, width: int = 128) -> Layers:
    channels, features = site.channels, 4 * width
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += _mix(site, channels, width)
        channels = width
    layers += [GlobalPool(), nn.Flatten()]
    inputs = width
    for _ in range(3):
        layers += [nn.Linear(inputs, features), site.norm1d(features), nn.ReLU(True)]
        inputs = features
    layers += [nn.Linear(features, site.num_classes)]
    return partial(_pooled_map, site.layout), nn.Sequential(*layers)


def _conv(site: Site, width: int = 64, stride: int = 1) -> Layers:
    return _convolutions(
        site,
        width,
        _convolve(site, site.channels, width, stride),
        _convolve(site, width, width, stride=2),
    )


def _separable(site: Site, width: int = 64) -> Layers:
    separable = [
        layer
        for _ in range(2)
        for layer in (
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            site.norm2d(width),
            *_mix(site, width, width),
        )
    ]
    return _convolutions(site, width, _mix(site, site.channels, width), separable)


def _convolutions(site: Site, width: int, *layers: list[nn.Module]) -> Layers:
    """Layers on a map of 8x8, their mean over space, a linear layer."""
    classifier = (GlobalPool(), nn.Flatten(), nn.Linear(width, site.num_classes))
    return partial(_pooled_map, site.layout), nn.Sequential(*chain(*layers), *classifier)


def _convolve(site: Site, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, site.norm2d(outputs), nn.ReLU(True)]


def _pooled_map(layout: Layout, x: Tensor) -> Tensor:
    return average_pool(layout.to_map(x), 8)


class GlobalPool(nn.Module):
    """Mean over space, ``(B, C, H, W)`` to ``(B, C, 1, 1)``."""

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, 1)


def _token(site: Site, **ignored: int) -> Layers:
    layers = nn.Sequential(nn.LayerNorm(site.channels), nn.Linear(site.channels, site.num_classes))
    return site.layout.to_vector, layers


def _mix(site: Site, inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), site.norm2d(outputs), nn.ReLU(True)]


HEADS: dict[str, Callable[..., Layers]] = {
    "narrow": _narrow,
    "wide": _wide,
    "conv": _conv,
    "strided": partial(_conv, stride=2),
    "separable": _separable,
    "token": _token,
}
