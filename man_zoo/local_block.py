"""One gradient-isolated block: its units, its auxiliary, its loss.

A block is an ordinary module with ordinary inputs and outputs, so anything that wraps a module can
wrap it: DDP, FSDP, torch.compile, a process of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .auxiliary import Auxiliary
from .tasks import Features, as_list, run_units


class LocalBlock(nn.Module):
    """A run of consecutive units that learns from a loss of its own.

    Args:
        units: The backbone's own units, shared with it.
        output: The auxiliary of blocks 1 .. K-1, or, for block K, the network's head.
        criterion: Loss of the head, ``(logits, target) -> scalar``; auxiliaries bring their own.
        undecayed: Parameters without weight decay, of this block and maybe of others.
        recompute: Modes of the units that are recomputed in backward, by index within the block.
        taps: Units whose output the network's head takes beside the last one's, by index within the
            block. It goes along with the features, detached at every cut.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        output: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        undecayed: Iterable[nn.Parameter] = (),
        recompute: Mapping[int, str] = MappingProxyType({}),
        taps: Iterable[int] = (),
    ) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.output = output
        self.criterion = criterion
        ids = {id(p) for p in undecayed}
        # By name, so that it holds for a copy of the block as well.
        self._undecayed = {name for name, p in self.named_parameters() if id(p) in ids}
        self.recompute = recompute
        self.taps = tuple(taps)

    def forward(
        self, features: Features, target: Tensor, image: Tensor | None = None
    ) -> tuple[Features, Tensor, Tensor | None]:
        """One block's share of a training step; no gradient enters or leaves but through the loss.

        Args:
            features: The block before's output, or the normalised image.
            target: Of the task, e.g. class indices ``(B,)``.
            image: The un-normalised image ``(B, C, H, W)``, for auxiliaries that look at it.

        Returns:
            Features for the next block (detached), the local loss (a scalar, with the block's
            graph behind it), and the prediction, detached, or ``None``.
        """
        h = self.run_units(_detached(features))
        if isinstance(self.output, Auxiliary):
            loss, logits = self.output(as_list(h)[0], target, image)
        else:
            logits = self.classify(h)
            loss = self.criterion(logits, target)
        return _detached(h), loss, None if logits is None else logits.detach()

    def run_units(self, features: Features) -> Features:
        """The units' output, and behind it what is tapped."""
        return run_units(self.units, features, self.taps, self.recompute)

    def classify(self, features: Features) -> Tensor:
        """The block's own prediction, from its units' output.

        Raises:
            ValueError: For a backbone in distilled training, whose head gives two.
        """
        if isinstance(self.output, Auxiliary):
            return self.output.classify(as_list(features)[0])
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


def _detached(features: Features) -> Features:
    return tree_map_only(Tensor, Tensor.detach, features)
