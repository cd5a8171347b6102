"""Overlap: the next block's first unit itself, in front of any base method's head.

MAN looks through a copy of that unit. Here the unit is the live one and learns from both losses:
neighbouring blocks overlap, as in LoCo (Xiong et al., NeurIPS 2020, arXiv 2008.01342) and BackLink
(Guo et al., arXiv 2205.07141).
"""

from torch import Tensor, nn

from ..recompute import buffers_untouched, run


class SharedUnit(nn.Module):
    """Features ``h`` through the next block's first unit, which belongs to that block.

    Gradients reach its parameters from here too and stay until the next block has added its own:
    that block's optimizer steps on the sum. Its BatchNorm counts a batch in its own block alone;
    both passes see the same features with the same weights.

    Args:
        unit: The unit.
        recompute: Mode in which it is recomputed in backward here, if it is.
    """

    unit: nn.Module

    def __init__(self, unit: nn.Module, recompute: str | None = None) -> None:
        super().__init__()
        # Hidden from nn.Module: the next block owns it, and a checkpoint holds its weights once.
        object.__setattr__(self, "unit", unit)
        self.recompute = recompute

    def forward(self, h: Tensor) -> Tensor:
        with buffers_untouched(self.unit):
            return run(self.unit, h, recompute=self.recompute)
