"""Images whose every pixel, or every object, has a class: data sets, transforms, target tensors.

- Segmentation: (H, W) int64, the class of every pixel, 255 where it does not count.
- Detection: (boxes, 5) float32, rows x1, y1, x2, y2 in pixels and class, filled up with class -1.
"""

from .info import DENSE
from .loaders import DenseSamples, dense_transforms, refuse_dense_flags
from .sources import open_dense

__all__ = ["DENSE", "DenseSamples", "dense_transforms", "open_dense", "refuse_dense_flags"]
