"""How features lie in memory between two units, and the one conversion that heads use.

Convolutional networks pass ``(B, C, H, W)`` on, Swin and its kin ``(B, H, W, C)``, transformers
``(B, N, C)`` with prefix tokens (class, register) before the patches. Heads never look at which:
they ask for a map or a vector.
"""

from dataclasses import dataclass

from timm.layers import Format
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The layout of a unit's output.

    Args:
        format: ``Format.NCHW``, ``Format.NHWC`` or ``Format.NLC`` (tokens), timm's enum.
        grid: Rows and columns of patch tokens; only tokens have one.
        prefix_tokens: Tokens before the patches; the first one is the class token.
    """

    format: Format = Format.NCHW
    grid: tuple[int, int] = (0, 0)
    prefix_tokens: int = 0

    def to_map(self, x: Tensor) -> Tensor:
        """Features as ``(B, C, H, W)``; prefix tokens are left out."""
        if self.format is Format.NLC:
            x = x[:, self.prefix_tokens :].unflatten(1, self.grid).permute(0, 3, 1, 2)
        elif self.format is Format.NHWC:
            x = x.permute(0, 3, 1, 2)
        return x

    def to_vector(self, x: Tensor) -> Tensor:
        """Features as ``(B, C)``: the class token where there is one, else the mean over space."""
        if self.format is Format.NLC:
            return x[:, 0] if self.prefix_tokens else x.mean(1)
        return self.to_map(x).mean((2, 3))

    def per_channel(self, vector: Tensor) -> Tensor:
        """A ``(C,)`` vector shaped to broadcast over features of this layout."""
        return vector[:, None, None] if self.format is Format.NCHW else vector
