"""Object detection: a target is the boxes in an image, with their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torchvision.models import detection

from ..messages import unknown
from .decoder import Exit
from .detection_loss import DetectionLoss
from .mean_average_precision import mean_average_precision
from .pictures import Draw, draw_boxes
from .retinanet import GROUPS, Anchors, Design, LevelHead, RetinaNet
from .task import ExitSite

BOXES = 8  # of an image that means nothing
LIKELY = 0.5  # score of a box that is drawn


@dataclass(frozen=True)
class Detection:
    """Object detection by RetinaNet.

    A target is ``(B, N, 5)``, with rows of x1, y1, x2, y2 in pixels and the class, -1 for a row
    that is no box; a prediction is ``(B, anchors, classes + 9)``, and
    :class:`man_zoo.tasks.retinanet.Anchors` tells what it says.

    Args:
        num_classes: How many classes there are.
        kind: ``"retinanet"``, or ``"retinanet_v2"``: torchvision's improved version, with group
            norm in the head and GIoU as the loss of boxes.
        anchor_size: Side of the smallest anchor in pixels, 32 as published: of about the smallest
            objects.
        pyramid_width: Channels of the pyramid and of the head's subnets, 256 as published.

    Raises:
        ValueError: For another kind, or a number that is impossible.
    """

    num_classes: int
    kind: str = "retinanet"
    anchor_size: int = 32
    pyramid_width: int = 256

    name: ClassVar[str] = "detection"
    main_score: ClassVar[str] = "map50"
    percent: ClassVar[Mapping[str, str]] = {"map50": "mAP@0.5", "map": "mAP@[.5:.95]"}
    usual_classes: ClassVar[int] = 80  # COCO
    dense: ClassVar[bool] = True
    decoders: ClassVar[tuple[str, ...]] = ("retinanet", "retinanet_v2")
    draw: ClassVar[Draw | None] = staticmethod(draw_boxes)

    def __post_init__(self) -> None:
        if self.kind not in self.decoders:
            raise unknown("decoder of detection", self.kind, self.decoders)
        for name in ("num_classes", "anchor_size", "pyramid_width"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"{name}={value} is impossible for detection; expected 1 or more.")
        if self.improved and self.pyramid_width % GROUPS:
            raise ValueError(
                f"pyramid_width={self.pyramid_width} is impossible for retinanet_v2, whose norms "
                f"have {GROUPS} groups; expected a multiple of {GROUPS}."
            )

    @property
    def improved(self) -> bool:
        """Whether it is torchvision's second version."""
        return self.kind == "retinanet_v2"

    @property
    def least_images(self) -> int:
        """One."""
        return 1

    def with_classes(self, num_classes: int) -> Self:
        """The same task with so many classes."""
        return replace(self, num_classes=num_classes)

    # The network ----------------------------------------------------------------------------------

    @property
    def _design(self) -> Design:
        return Design(self.num_classes, self.pyramid_width, self.anchor_size, self.improved)

    def decoder(self, maps: Sequence[torch.Size], input_size: tuple[int, int, int]) -> RetinaNet:
        """torchvision's pyramid and head, P3 to P7."""
        return RetinaNet(maps, input_size[1:], self._design)

    def exit(self, site: ExitSite) -> Exit:
        """A smaller head on the levels that the cut serves."""
        return Exit(LevelHead(site, self._design))

    def to_image(self, prediction: Tensor, size: tuple[int, int]) -> Tensor:
        """The prediction as it is; :meth:`detections` makes boxes of it."""
        return prediction

    @torch.no_grad()
    def detections(self, prediction: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image, as torchvision's RetinaNet gives it: the best 300 at most.

        Args:
            prediction: Of the network, or of an exit.

        Returns:
            For each image ``boxes`` ``(found, 4)``, x1, y1, x2, y2 in pixels, and their ``scores``
            and ``labels`` ``(found,)``, best first.
        """
        anchors = Anchors.of(prediction)
        levels, sizes = anchors.levels(), [anchors.image_size()] * len(prediction)
        outputs = {
            # Contiguous as torchvision's are: else a sigmoid may round otherwise.
            "cls_logits": list(anchors.logits.contiguous().split(levels, dim=1)),
            "bbox_regression": list(anchors.regression.split(levels, dim=1)),
        }
        boxes = [list(of_image.split(levels)) for of_image in anchors.boxes]
        return _retinanet_without_weights().postprocess_detections(outputs, boxes, sizes)

    # Training -------------------------------------------------------------------------------------

    def criterion(self, smoothing: float = 0.0) -> nn.Module:
        """:class:`man_zoo.tasks.detection_loss.DetectionLoss`.

        Raises:
            ValueError: For smoothing, which a focal loss does not know.
        """
        if smoothing:
            raise ValueError(
                f"smoothing={smoothing} is for classes that exclude each other; expected 0 for "
                "detection, whose loss is focal."
            )
        return DetectionLoss("giou" if self.improved else "l1")

    def random_target(
        self, count: int, size: tuple[int, int], device: torch.device | None = None
    ) -> Tensor:
        """Boxes anywhere, ``(count, 8, 5)``."""
        corners = torch.rand(count, BOXES, 2, 2, device=device).sort(2).values
        corners = torch.stack([corners[..., 0] * size[1], corners[..., 1] * size[0]], dim=3)
        labels = torch.randint(self.num_classes, (count, BOXES, 1), device=device)
        return torch.cat([corners.flatten(2), labels], dim=2)

    # Scores ---------------------------------------------------------------------------------------

    def tally(self) -> "Boxes":
        """Of what is found, and of the truth."""
        return Boxes(self)

    def scores(self, tallies: Sequence[Any]) -> dict[str, Any]:
        """In percent ``map50`` and ``map`` and ``ap`` of each class, and ``loss``.

        Raises:
            UserError: As :func:`man_zoo.tasks.mean_average_precision.mean_average_precision`.
        """
        found = [boxes for tally in tallies for boxes in tally.found]
        truth = [boxes for tally in tallies for boxes in tally.truth]
        scores = mean_average_precision(found, truth, self.num_classes)
        return scores | {"loss": sum(tally.loss for tally in tallies) / len(truth)}

    def drawable(self, prediction: Tensor) -> list[Tensor]:
        """Of :meth:`found`, what is rather there than not."""
        return [rows[rows[:, 4] > LIKELY] for rows in self.found(prediction)]

    def found(self, prediction: Tensor) -> list[Tensor]:
        """:meth:`detections` as rows of x1, y1, x2, y2, score, class, on the CPU."""
        return [
            torch.cat([one["boxes"], one["scores"][:, None], one["labels"][:, None]], dim=1)
            .float()
            .cpu()
            for one in self.detections(prediction)
        ]


@dataclass
class Boxes:
    """A tally of boxes: average precision compares those of all images together.

    Args:
        task: Which they are for.
        found: Of each image rows of x1, y1, x2, y2, score, class.
        truth: Of each image the target's rows.
        loss: Summed over images.
    """

    task: Detection
    found: list[Tensor] = field(default_factory=list)
    truth: list[Tensor] = field(default_factory=list)
    loss: float = 0.0

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self.found += self.task.found(prediction)
        self.truth += target.cpu()
        self.loss += self.task.criterion()(prediction, target).item() * len(target)


@cache
def _retinanet_without_weights() -> detection.RetinaNet:
    """torchvision's network, for what it does after its layers."""
    body: Any = nn.Identity()
    body.out_channels = 1
    with torch.device("meta"):
        return detection.RetinaNet(body, num_classes=1)
