"""What a training step is, beside the model: batch, optimizer, precision, device, averages."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..tasks import Task

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """What a training step's memory depends on beside the model.

    Args:
        batch_size: Images a step.
        opt: timm's name of the optimizer; one a block, stepping right after its backward.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` autocast over float32 weights.
        device: ``"cuda"`` or ``"cpu"``, whose autocast, attention and optimizers are counted.
        opt_kwargs: Keywords of the optimizer; the training recipe's by default.
        grad_accum_steps: Batches to one update. With more than one the gradients of all blocks
            live through the step.
        model_ema: Whether an average of the backbone's weights is kept.
        processes: That average their gradients (DDP), whose buckets live through the step.
        channels_last: Whether weights and images are in channels-last order.
        soft_target: Whether a target is a probability for each class (mixup), not the task's own.
        micro_batches: Slices of a batch that each block runs one after the other.
    """

    batch_size: int
    opt: str = "sgd"
    precision: str = "no"
    device: str = "cuda"
    opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    grad_accum_steps: int = 1
    model_ema: bool = False
    processes: int = 1
    channels_last: bool = False
    soft_target: bool = False
    micro_batches: int = 1

    def autocast(self, device: str = "cpu") -> AbstractContextManager[Any]:
        """Around a forward pass on a kind of device.

        By default on the CPU's tensors, as the planner has them within ``acting_as(self.device)``.
        """
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(device, LOW_PRECISION[self.precision])

    def some_batch(
        self,
        count: int,
        input_size: tuple[int, int, int],
        task: Task,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        """So many images ``(B, C, H, W)`` and their target, of values that mean nothing."""
        images = torch.rand(count, *input_size, device=device)
        images = images.contiguous(memory_format=self.memory_format)
        if self.soft_target:
            return images, torch.rand(count, task.num_classes, device=device).softmax(1)
        return images, task.random_target(count, input_size[1:], device)

    @property
    def keeps_gradients(self) -> bool:
        """Whether the gradients of all blocks live through the step."""
        return self.grad_accum_steps > 1 or self.processes > 1

    @property
    def in_slices(self) -> str:
        """Its micro-batches in words, with the word before; nothing where there are none."""
        return f" in {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""

    @property
    def slice_size(self) -> int:
        """Images of the largest slice."""
        return -(-self.batch_size // self.micro_batches)

    def of_slice(self, whole: int) -> int:
        """What the largest slice has of something that the images of a batch share evenly."""
        return whole * self.slice_size // self.batch_size

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format
