"""Feature maps: where in an image a network is active, depth by depth."""

from collections.abc import Sequence

from torch import Tensor

from ..layout import Layout
from .runs import Run, read


def activation_map(features: Tensor, layout: Layout) -> Tensor:
    """Mean over channels of the features' magnitude, ``(B, H, W)``.

    The activation-based attention map F_sum of Zagoruyko and Komodakis (ICLR 2017, arXiv
    1612.03928), divided by the number of channels. Behind a ReLU it is the plain mean.
    """
    return layout.to_map(features).abs().mean(1)


def feature_maps(run: Run, depths: Sequence[int], images: Tensor) -> list[Tensor]:
    """Activation maps ``(B, H, W)`` of images ``(B, C, H, W)``, one tensor a depth, on the CPU.

    ``H`` and ``W`` are those of the features.
    """
    return read(run, images, depths, lambda x: activation_map(x, run.units.layout).cpu())
