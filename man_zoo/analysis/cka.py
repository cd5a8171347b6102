"""Minibatch CKA: how alike the features of two networks are, block by block.

Centred kernel alignment with a linear kernel (Kornblith et al. 2019, arXiv 1905.00414), from
unbiased estimates that are averaged over batches (Nguyen, Raghu, Kornblith, ICLR 2021, arXiv
2010.15327).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..console import UserError
from ..training.evaluate import Loader
from .runs import Run, read

FEWEST = 4  # images without which HSIC has no unbiased estimate


def gram(features: Tensor) -> Tensor:
    """The linear kernel ``(B, B)`` of features ``(B, ...)`` of a batch, all positions kept.

    Centred first, in float32 then float64: HSIC does not change by that, but keeps its digits.
    """
    x = features.flatten(1).float()
    x = x - x.mean(0)
    return (x @ x.T).double()


def hsic(grams: Tensor) -> Tensor:
    """Unbiased HSIC of every pair of kernels.

    HSIC_1 of Song et al. 2012 (JMLR 13), equation 3 of arXiv 2010.15327.

    Args:
        grams: ``S`` kernels ``(S, B, B)`` on the same ``B`` images, at least four.

    Returns:
        ``(S, S)``; below zero where features have less in common than chance would give.
    """
    n = grams.shape[-1]
    k = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    flat, rows, sums = k.flatten(1), k.sum(2), k.sum((1, 2))
    products = flat @ flat.T
    means = torch.outer(sums, sums) / ((n - 1) * (n - 2))
    crossed = 2 / (n - 2) * rows @ rows.T
    return (products + means - crossed) / (n * (n - 3))


class MinibatchCKA:
    """CKA of every pair of ``S`` feature sets, from HSIC averaged over batches.

    Equation 2 of arXiv 2010.15327; a smaller batch counts for as many images as it has.
    """

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def update(self, grams: Tensor) -> None:
        """Count a batch: kernels ``(S, B, B)``. Fewer than four images tell nothing."""
        images = grams.shape[-1]
        if images >= FEWEST:
            self.total = self.total + images * hsic(grams)

    def compute(self) -> Tensor:
        """CKA ``(S, S)``: 1 for the same up to rotation and scale, about 0 for unrelated ones.

        Raises:
            UserError: If the estimate of a feature set's own HSIC is not positive.
        """
        own = self.total.diagonal()
        if not (own > 0).all():
            raise UserError(
                "Features vary too little for CKA on so few images; expected a larger --batch-size "
                "or more --val-images."
            )
        scale = own.sqrt()
        return self.total / torch.outer(scale, scale)


def similarity(runs: Sequence[Run], depths: Sequence[int], loader: Loader) -> Tensor:
    """CKA of every run at every depth with every other.

    Args:
        runs: ``R`` runs.
        depths: ``D`` units whose output is compared.
        loader: Batches in random order, of four images or more.

    Returns:
        ``(R, D, R, D)``.
    """
    cka = MinibatchCKA()
    for images, _ in tqdm(loader, "CKA", leave=False):
        cka.update(torch.stack([k for run in runs for k in read(run, images, depths, gram)]))
    shape = (len(runs), len(depths))
    return cka.compute().view(*shape, *shape).cpu()
