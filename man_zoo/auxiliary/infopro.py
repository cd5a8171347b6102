"""InfoPro: keep what the image says, learn what the task needs (Wang et al., ICLR 2021).

Local loss = lambda1 * reconstruction of the image + lambda2 * task loss; both lambdas go linearly
from their value at block 1 to their value at block K - 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..messages import unknown
from .head import Head
from .site import Site

# Up to here images are small (CIFAR, SVHN, STL-10) and take the small heads; beyond, ImageNet's.
SMALL_IMAGE = 96
CONTRAST_FEATURES = 128
TEMPERATURE = 0.07


class InfoProHead(Head):
    """A decoder that restores the image and a classifier.

    Args:
        site: Where the head stands.
        lambda1: Weight of the reconstruction at block 1 and at block K - 1.
        lambda2: Weight of the task loss at block 1 and at block K - 1.
        classifier: ``"1c2f"`` or ``"2c2f"``: convolutions and linear layers (small images only).
        local_loss: ``"cross_entropy"``, or ``"contrast"`` (small images only): the supervised
            contrastive loss (Khosla et al., arXiv 2004.11362), with one view.
    """

    needs_image = True
    any_size = False

    def __init__(
        self,
        site: Site,
        *,
        lambda1: tuple[float, float] = (5.0, 0.5),
        lambda2: tuple[float, float] = (0.5, 1.0),
        classifier: str = "1c2f",
        local_loss: str = "cross_entropy",
    ) -> None:
        super().__init__(site)
        if classifier not in ("1c2f", "2c2f"):
            raise unknown("classifier", classifier, ("1c2f", "2c2f"))
        if local_loss not in ("cross_entropy", "contrast"):
            raise unknown("local_loss", local_loss, ("cross_entropy", "contrast"))
        self.lambda1 = _at_site(lambda1, site)
        self.lambda2 = _at_site(lambda2, site)
        self.classifies = local_loss != "contrast"
        self.compares = not self.classifies
        self.to_map = site.layout.to_map
        self.image_size = site.image_size
        self.upsample_first = small = max(site.image_size) <= SMALL_IMAGE
        if not self.classifies:
            site.need_image_labels("local_loss='contrast'")
        if not (small or self.classifies):
            raise ValueError(
                f"local_loss='contrast' is for images up to {SMALL_IMAGE} px; "
                f"for {max(site.image_size)} px use 'cross_entropy'."
            )
        self.decoder = _small_decoder(site) if small else _large_decoder(site)
        self.classifier = site.exit() or self._own_classifier(site, small, int(classifier[0]))

    def _own_classifier(self, site: Site, small: bool, convolutions: int) -> nn.Module:
        if not small:
            return _large_classifier(site)
        outputs = site.num_classes if self.classifies else CONTRAST_FEATURES
        return _small_classifier(site, convolutions, outputs)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.to_map(features))

    def forward(
        self, features: Tensor, target: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert image is not None
        x = self.to_map(features)
        decoded = self.decoder(resize(x, self.image_size) if self.upsample_first else x)
        # With logits: the same value as sigmoid and then cross-entropy, and safe under autocast.
        reconstruction = F.binary_cross_entropy_with_logits(decoded, image)
        outputs = self.classifier(x)
        task_loss = self.criterion if self.classifies else supervised_contrast
        loss = self.lambda1 * reconstruction + self.lambda2 * task_loss(outputs, target)
        return loss, outputs if self.classifies else None


def _at_site(ends: tuple[float, float], site: Site) -> float:
    first, last = ends
    ratio = site.index / max(site.count - 1, 1)
    return first * (1 - ratio) + last * ratio


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize with aligned corners, as InfoPro's decoders use throughout."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def supervised_contrast(outputs: Tensor, target: Tensor) -> Tensor:
    """Supervised contrastive loss of one view (arXiv 2004.11362, equation 2).

    An anchor is never its own positive; an anchor without positives contributes 0.

    Args:
        outputs: ``(B, features)``, normalised here.
        target: Class indices ``(B,)``.

    Raises:
        ValueError: If the target holds probabilities (mixup, cutmix): there are no positives then.
    """
    if target.ndim != 1:
        raise ValueError("local_loss='contrast' needs class labels; switch mixup and cutmix off.")
    z = F.normalize(outputs)
    logits = z @ z.T / TEMPERATURE
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_prob = logits - logits.masked_fill(itself, float("-inf")).logsumexp(1, keepdim=True)
    positive = (target[:, None] == target[None]) & ~itself
    per_anchor = log_prob.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)
    return -per_anchor.mean()


def _conv(
    site: Site, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return [conv, site.norm2d(outputs), nn.ReLU(True)]


def _small_decoder(site: Site) -> nn.Sequential:
    return nn.Sequential(
        *_conv(site, site.channels, 12, 3, bias=True),
        nn.Conv2d(12, site.image_channels, 3, padding=1),
    )


def _small_classifier(site: Site, convolutions: int, outputs: int) -> nn.Sequential:
    wide = site.channels >= 64
    channels = site.channels if wide else 2 * site.channels
    layers = _conv(site, site.channels, channels, 3, stride=1 if wide else 2)
    for _ in range(convolutions - 1):
        layers += _conv(site, channels, channels, 3)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(channels, 128), nn.ReLU(True), nn.Linear(128, outputs)]
    return nn.Sequential(*layers)


class Resize(nn.Module):
    """:func:`resize` as a layer."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, self.size)


class LargeDecoder(nn.Sequential):
    """Layers in order; what a :class:`Resize` makes is made again in backward, and not kept.

    Enlarged maps are most of a decoder's memory, and each is read by one cheap convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(self)
        for layer in layers:
            if isinstance(layer, Resize):
                x = checkpoint(_convolve_resized, x, layer, next(layers), use_reentrant=False)
            else:
                x = layer(x)
        return x


def _convolve_resized(x: Tensor, resize: nn.Module, convolution: nn.Module) -> Tensor:
    return convolution(resize(x))


# Channels of the decoder's convolutions by how many times smaller than the image their output is.
# The published decoders start at 8 (28x28) and 16 (14x14); the other starts follow their pattern.
_FIRST_WIDTH = {2: 32, 4: 64, 8: 128, 16: 192, 32: 256}
_NEXT_WIDTH = {2: 12, 4: 32, 8: 64, 16: 128}


def _large_decoder(site: Site) -> LargeDecoder:
    (height, width), reduction = site.image_size, 2
    while reduction < 32 and -(-height // reduction) > site.size[0]:
        reduction *= 2
    channels = _FIRST_WIDTH[reduction]
    layers = _conv(site, site.channels, channels, 1, bias=True)
    while reduction > 2:
        reduction //= 2
        layers += [Resize((-(-height // reduction), -(-width // reduction)))]
        kernel = 1 if reduction > 4 else 3
        layers += _conv(site, channels, _NEXT_WIDTH[reduction], kernel, bias=True)
        channels = _NEXT_WIDTH[reduction]
    layers += [Resize(site.image_size), nn.Conv2d(channels, site.image_channels, 3, padding=1)]
    return LargeDecoder(*layers)


def _large_classifier(site: Site) -> nn.Sequential:
    quarter = site.channels // 4
    return nn.Sequential(
        *_conv(site, site.channels, quarter, 1),
        *_conv(site, quarter, 256, 3, stride=2),
        *_conv(site, 256, 512, 3, stride=2),
        *_conv(site, 512, 2048, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, site.num_classes),
    )
