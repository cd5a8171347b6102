"""What stands on maps: a decoder on the backbone, an exit behind a cut."""

from torch import Tensor, nn


class Decoder(nn.Module):
    """From a backbone's maps to a prediction."""

    taps: tuple[int, ...] = ()
    """Indices of the units whose maps it takes beside the last one, in order."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The prediction.

        Args:
            maps: ``(B, C, H, W)`` each: those of ``taps``, then that of the backbone's
                ``forward_features``.
        """
        raise NotImplementedError


class Exit(nn.Module):
    """A small decoder behind a cut; no auxiliary draws its weights anew.

    Args:
        head: From a map ``(B, C, H, W)`` to a prediction.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)
