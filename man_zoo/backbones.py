"""CIFAR ResNets: the 6n+2-layer networks for 32x32 images.

He et al., `Deep Residual Learning for Image Recognition`, 2015, section 4.2 -
https://arxiv.org/abs/1512.03385

The shortcut is a 1x1 projection wherever the shape changes (the paper's option B); the paper's
CIFAR networks use parameter-free shortcuts (option A) there.
"""

from typing import Any

import torch
import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, ResNet

__all__ = ["CifarResNet"]  # register_model adds each entry point to this


class CifarResNet(ResNet):
    """timm's ResNet with a full-resolution 3x3 stem and three stages of 16, 32 and 64 channels."""

    def __init__(
        self,
        layers: tuple[int, int, int],
        num_classes: int = 10,
        in_chans: int = 3,
        output_stride: int = 4,
        zero_init_last: bool = False,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # ResNet lets only a deep stem choose its width, 2 * stem_width, so it builds a deep one, to
        # be replaced below. Its strides count the 4 of the stem that is replaced.
        super().__init__(
            BasicBlock,  # type: ignore[arg-type]  # annotated as an instance
            layers,
            num_classes=num_classes,
            in_chans=in_chans,
            output_stride=4 * output_stride,
            stem_type="deep",
            stem_width=8,
            channels=(16, 32, 64),
            zero_init_last=zero_init_last,
            device=device,
            dtype=dtype,
            **kwargs,
        )
        self.conv1 = nn.Conv2d(  # type: ignore[assignment]
            in_chans, 16, kernel_size=3, padding=1, bias=False, device=device, dtype=dtype
        )
        self.maxpool = nn.Sequential()  # empty, as layer4, so that ResNet's forward runs as it is
        self.layer4 = nn.Sequential()
        for info, stem_stride in zip(self.feature_info, (2, 4, 4, 4), strict=True):
            info["reduction"] //= stem_stride  # type: ignore[operator]
        self.init_weights(zero_init_last)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = False) -> None:
        """Initialize as the paper does, which keeps the last BN of a residual branch at one."""
        super().init_weights(zero_init_last)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """See ResNet; the indices count four features, as there is no fourth stage."""
        take_indices, _ = feature_take_indices(4, indices)
        return super().forward_intermediates(
            x, take_indices, norm, stop_early, output_fmt, intermediates_only
        )

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """See ResNet; the indices count four features, as there is no fourth stage."""
        take_indices, max_index = feature_take_indices(4, indices)
        if max_index < 3:
            super().prune_intermediate_layers(take_indices, prune_norm, prune_head)
        elif prune_head:
            self.reset_classifier(0, "")
        return take_indices


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
        "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:1512.03385",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "resnet20.untrained": _cfg(),
        "resnet32.untrained": _cfg(),
        "resnet44.untrained": _cfg(),
        "resnet56.untrained": _cfg(),
        "resnet110.untrained": _cfg(),
    }
)


def _create_cifar_resnet(
    variant: str, blocks_per_stage: int, pretrained: bool = False, **kwargs: Any
) -> CifarResNet:
    return build_model_with_cfg(
        CifarResNet,
        variant,
        pretrained,
        layers=(blocks_per_stage,) * 3,
        feature_cfg={"out_indices": (1, 2, 3)},  # one a resolution: the stem has layer1's
        **kwargs,
    )


@register_model
def resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """CIFAR ResNet-20, n = 3."""
    return _create_cifar_resnet("resnet20", 3, pretrained, **kwargs)


@register_model
def resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """CIFAR ResNet-32, n = 5."""
    return _create_cifar_resnet("resnet32", 5, pretrained, **kwargs)


@register_model
def resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """CIFAR ResNet-44, n = 7."""
    return _create_cifar_resnet("resnet44", 7, pretrained, **kwargs)


@register_model
def resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """CIFAR ResNet-56, n = 9."""
    return _create_cifar_resnet("resnet56", 9, pretrained, **kwargs)


@register_model
def resnet110(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """CIFAR ResNet-110, n = 18."""
    return _create_cifar_resnet("resnet110", 18, pretrained, **kwargs)
