"""How features lie in memory between two units, and the one conversion that heads use.

Convolutional networks pass ``(B, C, H, W)`` on, Swin and its kin ``(B, H, W, C)``, transformers
``(B, N, C)`` with prefix tokens (class, register) before the patches. Heads never look at which:
they ask for a map or a vector.
"""

import math
from dataclasses import dataclass

from timm.layers import Format, global_pool_nlc
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The layout of a unit's output.

    Args:
        format: ``Format.NCHW``, ``Format.NHWC`` or ``Format.NLC`` (tokens), timm's enum.
        grid: Rows and columns of patch tokens, at the size that the backbone is built for; only
            tokens have one.
        prefix_tokens: Tokens before the patches: a class token, if any, is the first of them.
        pool: What stands for all tokens, as in timm: ``"token"`` (the class token), or ``"avg"``,
            ``"max"`` or ``"avgmax"`` of the patches.
        dynamic: Whether images of other sizes may come; their proportions are the same.
    """

    format: Format = Format.NCHW
    grid: tuple[int, int] = (0, 0)
    prefix_tokens: int = 0
    pool: str = "avg"
    dynamic: bool = False

    def to_map(self, x: Tensor) -> Tensor:
        """Features as ``(B, C, H, W)``; prefix tokens are left out.

        Raises:
            ValueError: If the patch tokens make no grid.
        """
        if self.format is Format.NLC:
            patches = x[:, self.prefix_tokens :]
            x = patches.unflatten(1, self.grid_of(patches.shape[1])).permute(0, 3, 1, 2)
        elif self.format is Format.NHWC:
            x = x.permute(0, 3, 1, 2)
        return x

    def to_vector(self, x: Tensor) -> Tensor:
        """Features as ``(B, C)``: tokens pooled as the backbone does, else the mean over space."""
        if self.format is Format.NLC:
            return global_pool_nlc(x, self.pool, self.prefix_tokens)
        return self.to_map(x).mean((2, 3))

    def grid_of(self, patches: int) -> tuple[int, int]:
        """Rows and columns of so many patch tokens.

        Raises:
            ValueError: If they make no grid of the proportions of ``grid``.
        """
        rows, columns = self.grid
        scale = math.sqrt(patches / (rows * columns)) if self.dynamic else 1
        grid = round(rows * scale), round(columns * scale)
        if math.prod(grid) != patches:
            raise ValueError(
                f"{patches} patch tokens are no {rows}x{columns} grid, nor one of its proportions "
                "where dynamic_img_size=True; give images of the model's own size, or use a head "
                "that looks at no map, such as 'token', where patches are dropped."
            )
        return grid

    def per_channel(self, vector: Tensor) -> Tensor:
        """A ``(C,)`` vector shaped to broadcast over features of this layout."""
        return vector[:, None, None] if self.format is Format.NCHW else vector
