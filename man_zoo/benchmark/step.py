"""One training step of a candidate, as the training recipe would run it, and what it costs."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..console import user_errors
from ..console.numbers import height_width
from ..local_block import LocalBlock
from ..local_model import LocalModel
from ..localize import is_planned, localize
from ..meter import StepCost, fake, measure
from ..planner import Setting
from ..planner.optimizer import create_optimizer
from ..planner.setting import LOW_PRECISION
from ..spec import END_TO_END
from ..target import acting_as
from .candidates import Candidate
from .devices import memory_device


def build(candidate: Candidate, args: Namespace, device: torch.device) -> LocalModel:
    """The model, in training mode; what it leaves to the planner is planned for the timed step.

    Raises:
        UserError: For an unknown backbone or keyword, an impossible K or image size.
    """
    spec, setting = candidate.spec, setting_of(args, args.batch_size, memory_device(args))
    step = vars(replace(setting, micro_batches=candidate.micro_batches))
    of_planner = step if is_planned(candidate.keywords) else {}
    # TypeError is how timm answers a keyword that it does not know, RuntimeError an image size.
    with user_errors(ValueError, TypeError, RuntimeError, about=candidate.name):
        model = localize(
            spec.backbone,
            spec.method,
            spec.k,
            img_size=height_width(args.img_size) if args.img_size else None,
            **(of_planner | candidate.keywords),
        )
        model.check_micro_batches(candidate.micro_batches)
    if candidate.checkpointed:
        model.set_grad_checkpointing()
    model.train().to(device)
    return model.to(memory_format=setting.memory_format)


def memory_batch(args: Namespace) -> int:
    """Images a step for memory and arithmetic."""
    return args.memory_batch_size or args.batch_size


def noise(model: LocalModel, setting: Setting) -> tuple[Tensor, Tensor]:
    """A batch of images ``(B, C, H, W)`` and their target for a model, where it is."""
    device = next(model.parameters()).device
    return setting.some_batch(setting.batch_size, model.input_size, model.task, device)


def setting_of(args: Namespace, batch_size: int, device: str) -> Setting:
    """What the flags say of a step on a kind of device."""
    return Setting(
        batch_size,
        args.opt,
        args.mixed_precision,
        device,
        grad_accum_steps=args.grad_accum_steps,
        model_ema=args.model_ema,
        channels_last=args.channels_last,
    )


def in_precision(
    blocks: Sequence[nn.Module], setting: Setting, device: str
) -> list[Callable[..., Any]]:
    """The blocks as they are run: under autocast, where the setting is in half precision."""
    if setting.precision == "no":
        return list(blocks)
    half = LOW_PRECISION[setting.precision]
    return [torch.autocast(device, half)(block.__call__) for block in blocks]


def train_here(
    candidate: Candidate, args: Namespace, batch_size: int, device: torch.device
) -> "Training":
    """A candidate in training on a device, as the flags say."""
    model = build(candidate, args, device)
    setting = replace(
        setting_of(args, batch_size, device.type), micro_batches=candidate.micro_batches
    )
    return Training(model, setting, average_of(model, setting))


def average_of(model: LocalModel, setting: Setting) -> ModelEmaV3 | None:
    """An average of the network's weights, where the setting has one."""
    return ModelEmaV3(model.network) if setting.model_ema else None


class Training:
    """A model in training on a batch of noise, as the training recipe would train it.

    Args:
        model: The model; real, or fake under ``FakeTensorMode`` and ``acting_as(device)``.
        setting: What a step is.
        average: Of its weights, if there is one.
    """

    def __init__(
        self, model: LocalModel, setting: Setting, average: ModelEmaV3 | None = None
    ) -> None:
        self.model, self.blocks, self.average = model, model.blocks, average
        self.count, self.micro_batches = setting.grad_accum_steps, setting.micro_batches
        plain = model.spec.method == END_TO_END and not model.spec.recompute
        if plain and not model.task.dense:
            # One block around the backbone's own forward: timm checkpoints only within that.
            self.blocks = [LocalBlock([model.backbone], nn.Identity(), model.criterion)]
        self.optimizers = [
            create_optimizer(block, setting.opt, setting.opt_kwargs, setting.device)
            for block in self.blocks
        ]
        self.images, self.target = noise(model, setting)
        self.forwards = in_precision(self.blocks, setting, self.images.device.type)

    @property
    def resident(self) -> list[Any]:
        """What lives through the whole step."""
        return [*self.blocks, *self.optimizers, self.average, self.images, self.target]

    def step(self) -> None:
        """One training step of all blocks, of as many batches as make an update."""
        for batch in range(self.count):
            final = batch == self.count - 1
            self.model.local_step(
                self.images,
                self.target,
                blocks=self.forwards,
                step=self._update if final else None,
                update_momentum=final,
                micro_batches=self.micro_batches,
            )
        if self.average is not None:
            self.average.update(self.model.network)

    def _update(self, j: int) -> None:
        self.optimizers[j].step()
        self.optimizers[j].zero_grad()


def live_cost(model: LocalModel, setting: Setting) -> StepCost:
    """Peak of live tensors and arithmetic of a step, on fake tensors; the model stays as it was."""
    average = average_of(model, setting)
    weights = average.module if average is not None else None
    with fake((model, weights)) as (model, weights), acting_as(setting.device):
        if average is not None:
            average.module = weights
        training = Training(model, setting, average)
        return measure(training.step, resident=training.resident)
