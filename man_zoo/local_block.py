"""One gradient-isolated block: its units, its auxiliary, its loss.

A block is an ordinary module with ordinary inputs and outputs, so anything that wraps a module can
wrap it: DDP, FSDP, torch.compile, a process of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from .auxiliary import Auxiliary
from .recompute import run


class LocalBlock(nn.Module):
    """A run of consecutive units that learns from a loss of its own.

    Args:
        units: The backbone's own units, shared with it.
        output: The auxiliary of blocks 1 .. K-1, or, for block K, the backbone's head.
        criterion: Loss of the head, ``(logits, target) -> scalar``; auxiliaries bring their own.
        undecayed: Parameters without weight decay, of this block and maybe of others.
        recompute: Modes of the units that are recomputed in backward, by index within the block.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        output: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        undecayed: Iterable[nn.Parameter] = (),
        recompute: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.output = output
        self.criterion = criterion
        ids = {id(p) for p in undecayed}
        # By name, so that it holds for a copy of the block as well.
        self._undecayed = {name for name, p in self.named_parameters() if id(p) in ids}
        self.recompute = recompute

    def forward(
        self, features: Tensor, target: Tensor, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One block's share of a training step; no gradient enters or leaves but through the loss.

        Args:
            features: The block before's output, or the normalised image.
            target: Class indices ``(B,)`` or probabilities ``(B, classes)``.
            image: The un-normalised image ``(B, C, H, W)``, for auxiliaries that look at it.

        Returns:
            Features for the next block (detached), the local loss (a scalar, with the block's
            graph behind it), and logits ``(B, classes)``, detached, or ``None``.
        """
        h = features.detach()
        for i, unit in enumerate(self.units):
            h = run(unit, h, recompute=self.recompute.get(i))
        if isinstance(self.output, Auxiliary):
            loss, logits = self.output(h, target, image)
        else:
            logits = self.classify(h)
            loss = self.criterion(logits, target)
        return h.detach(), loss, None if logits is None else logits.detach()

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of the block's own classifier, from its units' output.

        Raises:
            ValueError: For a backbone in distilled training, whose head gives two.
        """
        if isinstance(self.output, Auxiliary):
            return self.output.classify(features)
        logits = self.output(features)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"The head gives {len(logits)} logits an image and the local loss takes one; "
                "call set_distilled_training(False) before local_step."
            )
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, as timm's optimizer factory asks for them."""
        return set(self._undecayed)
