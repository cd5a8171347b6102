"""Linear separability: how well a linear classifier tells classes apart from frozen features."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from ..console import UserError
from ..data import Split
from ..layout import Layout
from ..training.evaluate import Loader
from .runs import Run, read

POOLED = 2  # rows and columns that are left of a feature map
INVERSE_PENALTY = 0.01  # sklearn's C


def separability(run: Run, depths: Sequence[int], images: Split) -> list[float]:
    """Top-1 of a linear probe at every depth, in percent.

    Args:
        run: Whose network; it stays as it is.
        depths: Units whose output is probed.
        images: Loaders of the images to fit on and of those to score on.

    Raises:
        UserError: If the images to fit on are all of one class.
    """
    train, train_target = _pooled(run, depths, images.train, "training images")
    val, val_target = _pooled(run, depths, images.val, "test images")
    if len(np.unique(train_target)) < 2:
        raise UserError(
            f"{len(train_target)} training images are all of one class; expected more of them."
        )
    pairs = tqdm(zip(train, val, strict=True), f"probes, {run.label}", len(depths), leave=False)
    return [probe_top1(x, train_target, y, val_target) for x, y in pairs]


def probe_top1(
    train: np.ndarray, train_target: np.ndarray, val: np.ndarray, val_target: np.ndarray
) -> float:
    """Top-1 in percent of a logistic regression on standardised features.

    It has an L2 penalty, and one optimum: no seed changes the result.

    Args:
        train: Features ``(N, P)`` to fit on.
        train_target: Their classes ``(N,)``.
        val: Features ``(M, P)`` to score on.
        val_target: Their classes ``(M,)``.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
    return 100 * probe.fit(train, train_target).score(val, val_target)


def pool(features: Tensor, layout: Layout) -> Tensor:
    """Features as ``(B, P)``: averaged over quarters of the map, with the class token where
    the backbone classifies by it.

    2 x 2 averages keep a little of where things are, as the auxiliaries of DGL do (Belilovsky et
    al. 2020, arXiv 1901.08164), and make P at most four times the channels, so that a few thousand
    images suffice to fit on.

    Args:
        features: In the layout given.
        layout: Of the backbone.
    """
    grid = layout.to_map(features)
    rows, columns = (min(POOLED, side) for side in grid.shape[2:])
    pooled = F.adaptive_avg_pool2d(grid, (rows, columns)).flatten(1)
    if layout.pool == "token":
        return torch.cat([layout.to_vector(features), pooled], 1)
    return pooled


def _pooled(
    run: Run, depths: Sequence[int], loader: Loader, what: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Pooled features ``(N, P)`` at every depth, and classes ``(N,)``."""
    batches, targets = [], []
    for images, target in tqdm(loader, f"{what}, {run.label}", leave=False):
        batches.append(read(run, images, depths, lambda x: pool(x, run.units.layout)))
        targets.append(target)
    features = [torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True)]
    return features, torch.cat(targets).cpu().numpy()
