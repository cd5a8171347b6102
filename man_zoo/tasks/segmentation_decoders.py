"""Decoders for segmentation, of torchvision's parts: DeepLabV3's and a feature pyramid's.

torchvision is there anyway, its modules stand alone, and their weights load without man_zoo.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.ops import FeaturePyramidNetwork

from .decoder import Decoder

PYRAMID, HEAD = 256, 128  # channels, as in the paper
LEVELS = 4
GROUPS = 32


class DeepLabV3(DeepLabHead, Decoder):
    """Atrous spatial pyramid pooling on the last map (Chen et al., arXiv 1706.05587).

    It is torchvision's head, weights and their names included.

    Args:
        maps: ``(1, C, H, W)`` of every unit.
        num_classes: How many classes there are.
    """

    def __init__(self, maps: Sequence[torch.Size], num_classes: int) -> None:
        super().__init__(maps[-1][1], num_classes)

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]
        return nn.Sequential.forward(self, maps[-1])


class FPN(Decoder):
    """A feature pyramid whose levels are summed (Kirillov et al., arXiv 1901.02446).

    Each level goes through conv3x3, group norm and ReLU and is resized to the finest; no norm looks
    across the batch.

    Args:
        maps: ``(1, C, H, W)`` of every unit.
        num_classes: How many classes there are.
    """

    def __init__(self, maps: Sequence[torch.Size], num_classes: int) -> None:
        super().__init__()
        levels = last_of_each_size(maps)[-LEVELS:]
        self.taps = levels[:-1]
        self.pyramid = FeaturePyramidNetwork([maps[i][1] for i in levels], PYRAMID)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(PYRAMID, HEAD, 3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, HEAD),
                nn.ReLU(True),
            )
            for _ in levels
        )
        self.classifier = nn.Conv2d(HEAD, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        pyramid = self.pyramid({str(i): x for i, x in enumerate(maps)}).values()
        finest, *others = (level(x) for level, x in zip(self.levels, pyramid, strict=True))
        for x in others:
            size = finest.shape[2:]
            finest = finest + F.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.classifier(finest)


def last_of_each_size(maps: Sequence[torch.Size]) -> tuple[int, ...]:
    """Indices of the units after which maps get another size, and of the last unit."""
    changes = (i for i, (one, following) in enumerate(pairwise(maps)) if one[2:] != following[2:])
    return (*changes, len(maps) - 1)


DECODERS: dict[str, Callable[[Sequence[torch.Size], int], Decoder]] = {
    "deeplabv3": DeepLabV3,
    "fpn": FPN,
}
