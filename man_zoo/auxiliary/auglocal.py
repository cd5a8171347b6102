"""AugLocal: auxiliaries built like the network that follows (Ma et al., ICLR 2024).

Auxiliary j has d_j units of the backbone's own type, with the widths found at d_j positions spread
evenly over the units after block j. Its parameters are its own; nothing is shared. Depth falls
linearly over the blocks, and the last d + 1 units of the network train together.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from ..families import cannot_build
from .head import Head
from .site import Site


class AugLocalHead(Head):
    """A small network of the backbone's kind, trained by the task loss.

    Args:
        site: Where the head stands.
        aux_depth: Units of the first auxiliary, d.
        pyramid_coeff: How far depth falls from the first auxiliary to the last, c.

    Raises:
        ValueError: If the backbone's family cannot build new units.
    """

    def __init__(self, site: Site, *, aux_depth: int = 2, pyramid_coeff: float = 0.5) -> None:
        super().__init__(site)
        depth = _depth(site, aux_depth, pyramid_coeff)
        widths = _spread_widths(site, depth)
        strides = _strides(site.channels, widths)
        self.features = nn.Sequential(*_units(site, widths, strides))
        channels = widths[-1] if widths else site.channels
        self.view: Callable[[Tensor], Tensor]
        self.classifier: nn.Module
        height, width = (-(-side // math.prod(strides)) for side in site.size)
        exit = site.exit(channels=channels, size=(height, width))
        if exit is not None:
            self.view, self.classifier = site.layout.to_map, exit
        else:
            norm = [site.norm1d(channels)] if depth <= 1 else []
            self.view = site.layout.to_vector
            self.classifier = nn.Sequential(*norm, nn.Linear(channels, site.num_classes))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.view(self.features(features)))


def final_cuts(
    cuts: tuple[int, ...], units: int, aux_depth: int = 2, **_: object
) -> tuple[int, ...]:
    """The cuts that remain when the last ``aux_depth + 1`` units train as the final block."""
    return tuple(cut for cut in cuts if cut < units - aux_depth - 1)


def _depth(site: Site, aux_depth: int, coeff: float) -> int:
    fallen = site.index * coeff / max(site.count - 1, 1)
    depth = max(1, round(aux_depth * (1 - fallen) + fallen))
    # All that are left: none where MAN has copied every unit that follows.
    return min(depth, len(site.units) - 1 - site.position)


def _spread_widths(site: Site, depth: int) -> list[int]:
    last = len(site.widths) - 1
    positions = (site.position + (last - site.position) / depth * i for i in range(1, depth + 1))
    return [site.widths[round(position)] for position in positions]


def _strides(channels: int, widths: list[int]) -> list[int]:
    """Of units of these widths: 2 where the width doubles, twice where it quadruples."""
    strides, halve_again = [], False
    for width in widths:
        strides.append(2 if width >= 2 * channels or halve_again else 1)
        halve_again = width >= 4 * channels
        channels = width
    return strides


def _units(site: Site, widths: list[int], strides: list[int]) -> list[nn.Module]:
    """New units of these widths and strides."""
    build = site.units.build
    template = site.units.modules[min(site.position + 1, len(site.units) - 1)]
    if build is None:
        raise cannot_build(template)
    units, channels = [], site.channels
    for width, stride in zip(widths, strides, strict=True):
        unit = build(template, channels, width, stride)
        site.units.init(unit)
        units.append(unit)
        channels = width
    return units
