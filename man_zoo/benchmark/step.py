"""One training step of a candidate, as the training recipe would run it, and what it costs."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..console import user_errors
from ..local_block import LocalBlock
from ..local_model import LocalModel
from ..localize import localize
from ..meter import StepCost, fake, measure
from ..spec import END_TO_END
from .candidates import Candidate


def build(candidate: Candidate, args: Namespace, device: torch.device) -> LocalModel:
    """The model, in training mode.

    Raises:
        UserError: For an unknown backbone or keyword, an impossible K or image size.
    """
    spec, keywords = candidate.spec, candidate.keywords
    # TypeError is how timm answers a keyword that it does not know, RuntimeError an image size.
    with user_errors(ValueError, TypeError, RuntimeError, about=candidate.name):
        model = localize(
            spec.backbone,
            spec.method,
            spec.k,
            img_size=args.img_size,
            micro_batches=candidate.micro_batches,
            **keywords,
        )
        model.check_micro_batches(candidate.micro_batches)
    if candidate.checkpointed:
        model.set_grad_checkpointing()
    model.train().to(device)
    return model.to(memory_format=_layout(args))


def memory_batch(args: Namespace) -> int:
    """Images a step for memory and arithmetic."""
    return args.memory_batch_size or args.batch_size


def _layout(args: Namespace) -> torch.memory_format:
    return torch.channels_last if args.channels_last else torch.contiguous_format


def create_optimizers(blocks: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
    """The training recipe's: an SGD a block."""
    return [
        create_optimizer_v2(block, opt="sgd", lr=0.1, weight_decay=1e-4, filter_bias_and_bn=False)
        for block in blocks
    ]


def noise(model: LocalModel, args: Namespace, batch_size: int) -> tuple[Tensor, Tensor]:
    """A batch of images ``(B, C, H, W)`` and target ``(B,)`` for a model, where it is."""
    device = next(model.parameters()).device
    images = torch.randn(batch_size, *model.input_size, device=device)
    target = torch.randint(model.num_classes, (batch_size,), device=device)
    return images.contiguous(memory_format=_layout(args)), target


class Training:
    """A model in training on a batch of noise, as the training recipe would train it.

    Args:
        model: The model; real, or fake under ``FakeTensorMode``.
        args: ``channels_last`` and ``mixed_precision`` count here.
        batch_size: Images a step.
        micro_batches: Slices of them.
    """

    def __init__(
        self, model: LocalModel, args: Namespace, batch_size: int, micro_batches: int = 1
    ) -> None:
        self.model, self.blocks, self.micro_batches = model, model.blocks, micro_batches
        if model.spec.method == END_TO_END:
            # One block around the backbone's own forward: timm checkpoints only within that, and
            # end to end keeps no features that a next block would want.
            self.blocks = [LocalBlock([model.backbone], nn.Identity(), model.criterion)]
        self.optimizers = create_optimizers(self.blocks)
        self.images, self.target = noise(model, args, batch_size)
        self.forwards: Sequence[Any] = self.blocks
        if args.mixed_precision == "bf16":
            bf16 = torch.autocast(self.images.device.type, torch.bfloat16)
            self.forwards = [bf16(block.__call__) for block in self.blocks]

    def step(self) -> None:
        """One training step of all blocks."""
        self.model.local_step(
            self.images,
            self.target,
            blocks=self.forwards,
            step=self._update,
            micro_batches=self.micro_batches,
        )

    def _update(self, j: int) -> None:
        self.optimizers[j].step()
        self.optimizers[j].zero_grad()


def live_cost(
    model: LocalModel, args: Namespace, batch_size: int, micro_batches: int = 1
) -> StepCost:
    """Peak of live tensors and arithmetic of a step, on fake tensors; arguments of `Training`."""
    with fake(model) as model:
        training = Training(model, args, batch_size, micro_batches)
        resident = [*training.blocks, *training.optimizers, training.images, training.target]
        return measure(training.step, resident=resident)
