"""RetinaNet of torchvision's parts: pyramid, head and anchors on a backbone's stages, or on a cut.

Levels have numbers: P3's cells are 8 pixels apart, P4's 16, and so on. A prediction is one tensor
``(B, anchors, classes + 9)`` that needs nothing beside it to be read (:class:`Anchors`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .decoder import Decoder
from .task import ExitSite

FINEST, COARSEST = 3, 5  # levels of the backbone's maps; P6 and P7 are made of P5
RATIOS = (0.5, 1.0, 2.0)
OCTAVES = (0, 1 / 3, 2 / 3)
EXIT_DEPTH = 2  # convolutions of an exit's subnets; the network's have four
GROUPS = 32


@dataclass(frozen=True)
class Design:
    """What a RetinaNet is like.

    Args:
        num_classes: How many classes there are.
        width: Channels of the pyramid and of the head's subnets.
        anchor_size: Side of P3's smallest square anchor, in pixels; every level doubles it.
        improved: torchvision's second version: group norm in the head, and P6 made of the
            backbone's last map.
    """

    num_classes: int
    width: int
    anchor_size: int
    improved: bool

    def head(self) -> RetinaNetHead:
        """torchvision's."""
        norm = partial(nn.GroupNorm, GROUPS) if self.improved else None
        per_cell = len(RATIOS) * len(OCTAVES)
        return RetinaNetHead(self.width, per_cell, self.num_classes, norm)

    def anchors(self, levels: Sequence[Tensor], first: int) -> Tensor:
        """Boxes and strides ``(anchors, 5)``, in pixels, of maps ``(B, C, H, W)`` from a level on.

        The image is what the finest map covers.
        """
        finest = levels[0]
        image = [side << first for side in finest.shape[2:]]
        check_size(image)
        grids = [level.shape[2:] for level in levels]
        steps = [[s // g for s, g in zip(image, grid, strict=True)] for grid in grids]
        numbers = range(first, first + len(levels))
        sides = [self.anchor_size << (number - FINEST) for number in numbers]
        sizes = tuple(tuple(int(side * 2**octave) for octave in OCTAVES) for side in sides)
        # Made where it is used: what it holds is no buffer, and would not follow the module.
        generator = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
        generator.set_cell_anchors(torch.promote_types(finest.dtype, torch.float32), finest.device)
        boxes = generator.grid_anchors(grids, steps)
        return torch.cat(
            [
                torch.cat([of_level, of_level.new_full((len(of_level), 1), 1 << number)], 1)
                for number, of_level in zip(numbers, boxes, strict=True)
            ]
        )

    def predict(self, head: RetinaNetHead, levels: Sequence[Tensor], first: int) -> Tensor:
        """The prediction from maps ``(B, width, H, W)``, finest first."""
        outputs = head(levels)
        logits, regression = outputs["cls_logits"], outputs["bbox_regression"]
        anchors = self.anchors(levels, first).expand(len(logits), -1, -1)
        return torch.cat([logits, regression, anchors], dim=2)


class Anchors(NamedTuple):
    """What a prediction says of every anchor.

    Args:
        logits: ``(B, anchors, classes)``.
        regression: How the object's box differs from the anchor, ``(B, anchors, 4)``.
        boxes: The anchors themselves: x1, y1, x2, y2 in pixels.
        strides: ``(B, anchors, 1)``, pixels from cell to cell of the anchor's level.
    """

    logits: Tensor
    regression: Tensor
    boxes: Tensor
    strides: Tensor

    @classmethod
    def of(cls, prediction: Tensor) -> "Anchors":
        """Of a prediction ``(B, anchors, classes + 9)``."""
        return cls(*prediction.split((prediction.shape[2] - 9, 4, 4, 1), dim=2))

    def levels(self) -> list[int]:
        """How many anchors each level has."""
        return self.strides[0, :, 0].unique_consecutive(return_counts=True)[1].tolist()

    def image_size(self) -> tuple[int, int]:
        """Height and width: the finest level's last anchor stands a stride before the end."""
        last = self.boxes[0, self.levels()[0] - 1]
        width, height = (last[:2] + last[2:]) / 2 + self.strides[0, 0]
        return int(height), int(width)


class RetinaNet(Decoder):
    """Feature pyramid and head (Lin et al., ICCV 2017, arXiv 1708.02002) on C3, C4 and C5.

    Its weights are those of torchvision's RetinaNet, ``fpn`` from ``backbone.fpn``.

    Args:
        maps: ``(1, C, H, W)`` of every unit.
        image_size: Height and width.
        design: What it is like.

    Raises:
        ValueError: For a backbone without maps of stride 8, 16 and, at its end, 32.
    """

    def __init__(
        self, maps: Sequence[torch.Size], image_size: tuple[int, int], design: Design
    ) -> None:
        super().__init__()
        check_size(image_size)
        last = {level_of(image_size, x[2:]): i for i, x in enumerate(maps)}
        wanted = [level for level in range(FINEST, COARSEST + 1) if level in last]
        if len(wanted) < 3 or last[COARSEST] != len(maps) - 1:
            strides = ", ".join(f"{2**level:g}" for level in sorted(last))
            raise ValueError(
                f"RetinaNet stands on stages of stride 8, 16 and 32, and this backbone's are of "
                f"stride {strides}; expected one with four stages, such as resnet50, convnext_tiny "
                "or swin_tiny_patch4_window7_224, and no output_stride."
            )
        indices = [last[level] for level in wanted]
        self.taps = tuple(indices[:-1])
        channels = [maps[i][1] for i in indices]
        source = channels[-1] if design.improved else design.width
        self.fpn = FeaturePyramidNetwork(
            channels, design.width, LastLevelP6P7(source, design.width)
        )
        self.head = design.head()
        self.design = design

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = self.fpn({str(i): x for i, x in enumerate(maps)})
        return self.design.predict(self.head, list(levels.values()), FINEST)


class LevelHead(nn.Module):
    """RetinaNet's head on the levels that a cut serves, with half as many convolutions.

    They are those that the next block begins with: in four stages P3 behind the first, P4 behind
    the second, P5 to P7 behind the third, as in MAN++ (arXiv 2507.16279). A cut within a stage
    serves the level of its stride, one before P3 serves P3.

    Args:
        site: Where it stands.
        design: What it is like.
    """

    def __init__(self, site: ExitSite, design: Design) -> None:
        super().__init__()
        own, following = (level_of(site.image_size, size) for size in (site.size, site.next_size))
        self.first = int(max(own, following, FINEST))
        step = 1 << (self.first - int(own))
        # One pixel a cell and its neighbours, as the pyramid's P6 is made; 1x1 where none is lost.
        self.lateral = nn.Conv2d(site.channels, design.width, 2 * step - 1, step, step - 1)
        nn.init.kaiming_uniform_(self.lateral.weight, a=1)
        nn.init.zeros_(self.lateral.get_parameter("bias"))
        coarsest = self.first >= COARSEST
        self.coarser = LastLevelP6P7(design.width, design.width) if coarsest else None
        self.head = design.head()
        subnets: tuple[Any, ...] = (self.head.classification_head, self.head.regression_head)
        for subnet in subnets:
            subnet.conv = subnet.conv[:EXIT_DEPTH]
        self.design = design

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.lateral(x)]
        if self.coarser is not None:
            levels, _ = self.coarser(levels, levels, [])
        return self.design.predict(self.head, levels, self.first)


def level_of(image: Sequence[int], size: Sequence[int]) -> float:
    """The level of a map by its size: the logarithm of its stride, as a float where it is none."""
    return math.log2(image[0] / size[0])


def check_size(image: Sequence[int]) -> None:
    """Refuse images whose cells would not lie on each other.

    Args:
        image: Height and width in pixels.

    Raises:
        ValueError: If a side is no multiple of the coarsest stage's stride.
    """
    stride = 1 << COARSEST
    if any(side % stride for side in image):
        near = "x".join(str(max(1, round(side / stride)) * stride) for side in image)
        raise ValueError(
            f"RetinaNet takes images whose sides are multiples of {stride} pixels, and got "
            f"{image[0]}x{image[1]}; the nearest is {near}."
        )
