"""RetinaNet's loss, with torchvision's parts, in tensors whose sizes no target changes.

torchvision's own loss picks out anchors, so that its sizes follow from the data: it waits for the
device at every image, and cannot be planned on tensors without data.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, generalized_box_iou, sigmoid_focal_loss

from .retinanet import Anchors

FOREGROUND, BACKGROUND = 0.5, 0.4  # least IoU with an object, and most with the ground


class DetectionLoss(nn.Module):
    """Focal loss of the classes and loss of the boxes, by objects' anchors, the mean over images.

    Args:
        box_loss: ``"l1"`` of what a head regresses, or ``"giou"`` of the boxes.
    """

    def __init__(self, box_loss: str = "l1") -> None:
        super().__init__()
        self.box_loss = {"l1": _l1, "giou": _giou}[box_loss]

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """A scalar, from a prediction ``(B, anchors, classes + 9)`` and a target ``(B, N, 5)``."""
        logits, regression, anchors, _ = Anchors.of(prediction)
        matched = match_anchors(anchors.detach(), target)
        found, counts = matched >= 0, matched != Matcher.BETWEEN_THRESHOLDS
        rows = target.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 5))
        boxes = rows[..., :4].to(anchors.dtype).where(found[..., None], anchors)

        labels = rows[..., 4:].long().clamp(min=0)
        wanted = torch.zeros_like(logits).scatter_(2, labels, found[..., None].to(logits.dtype))
        of_anchor = sigmoid_focal_loss(logits, wanted).sum(2) * counts
        of_anchor = of_anchor + self.box_loss(regression, anchors, boxes) * found
        return (of_anchor.sum(1) / found.sum(1).clamp(min=1)).mean()


def _l1(regression: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    wanted = _coder().encode_single(boxes.flatten(0, 1), anchors.flatten(0, 1))
    return F.l1_loss(regression, wanted.view_as(regression), reduction="none").sum(2)


def _giou(regression: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    predicted = _coder().decode_single(regression.flatten(0, 1), anchors.flatten(0, 1))
    # torchvision's loss of pairs picks those that overlap; its measure of all with all does not.
    alike = torch.vmap(generalized_box_iou)(predicted[:, None], boxes.view(-1, 1, 4))
    return 1 - alike.view(boxes.shape[:2])


def _coder() -> BoxCoder:
    return BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))


# An operator, because its sizes follow from the target within, and from its inputs outside.
@torch.library.custom_op("man_zoo::match_anchors", mutates_args=())
def match_anchors(anchors: Tensor, target: Tensor) -> Tensor:
    """Which row of the target every anchor is for, by torchvision's matcher.

    Args:
        anchors: ``(B, anchors, 4)``.
        target: ``(B, N, 5)``.

    Returns:
        ``(B, anchors)``, int64: -1 for the ground, -2 for what does not count.
    """
    matcher = Matcher(FOREGROUND, BACKGROUND, allow_low_quality_matches=True)
    matched = torch.full(anchors.shape[:2], Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    for own, boxes, rows in zip(matched, anchors, target, strict=True):
        real = (rows[:, 4] >= 0).nonzero()[:, 0]
        if len(real):
            best = matcher(box_iou(rows[real, :4].to(boxes.dtype), boxes))
            own.copy_(real[best.clamp(min=0)].where(best >= 0, best))
    return matched


@match_anchors.register_fake
def _(anchors: Tensor, target: Tensor) -> Tensor:
    return torch.empty(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
