"""PredSim: predict, and let alike samples look alike (Nokland and Eidnes, arXiv 1901.06656).

Local loss = 0.99 * similarity matching + 0.01 * cross-entropy.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import Head
from .site import Site

MAX_FEATURES = 512


class PredSimHead(Head):
    """A linear classifier on pooled features, and a convolution whose output's similarities match.

    Args:
        site: Where the head stands.
        sim_weight: Weight of the similarity loss.
        pred_weight: Weight of the cross-entropy.
    """

    any_size = False
    compares = True

    def __init__(self, site: Site, *, sim_weight: float = 0.99, pred_weight: float = 0.01) -> None:
        super().__init__(site)
        site.need_image_labels("predsim")
        self.sim_weight = sim_weight
        self.pred_weight = pred_weight
        self.num_classes = site.num_classes
        self.to_map = site.layout.to_map
        channels = site.channels
        pool, features = _pool_to(MAX_FEATURES, channels, site.size)
        linear = nn.Linear(features, site.num_classes)
        self.classifier = nn.Sequential(pool, nn.Flatten(), linear)
        self.decoder = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.to_map(features))

    def forward(
        self, features: Tensor, target: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = self.to_map(features)
        logits = self.classifier(x)
        wanted = target if target.is_floating_point() else F.one_hot(target, self.num_classes)
        decoded = self.decoder(x)
        # Not in half precision: alike samples differ by less than it can tell from 1. The target
        # in float32 whatever the features are, as published.
        full = torch.promote_types(decoded.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            rows = similarity(decoded.to(full))
            sim = F.mse_loss(rows, similarity(wanted.float()).to(full))
        return self.sim_weight * sim + self.pred_weight * self.criterion(logits, target), logits


def similarity(x: Tensor) -> Tensor:
    """Cosine similarity ``(B, B)`` of centred rows (arXiv 1901.06656, section 2).

    Maps ``(B, C, H, W)`` with more than 3 channels and H > 1 are first reduced to each channel's
    standard deviation over space.
    """
    if x.ndim == 4 and x.size(1) > 3 and x.size(2) > 1:
        x = x.flatten(2).std(2)
    x = x.flatten(1)
    x = x - x.mean(1, keepdim=True)
    x = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)
    return (x @ x.T).clamp(-1, 1)


def _pool_to(limit: int, channels: int, size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Average pooling that brings ``channels * h * w`` to at most ``limit``, and what it leaves."""
    (height, width), (h, w) = size, size
    kernel_h = kernel_w = 1
    while channels * h * w > limit and kernel_h < height:
        kernel_h *= 2
        h = math.ceil(height / kernel_h)
        if channels * h * w > limit:
            kernel_w *= 2
            w = math.ceil(width / kernel_w)
    padding = (
        (kernel_h * (h - height // kernel_h)) // 2,
        (kernel_w * (w - width // kernel_w)) // 2,
    )
    return nn.AvgPool2d((kernel_h, kernel_w), padding=padding), channels * h * w
