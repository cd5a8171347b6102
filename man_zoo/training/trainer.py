"""What a training step needs, prepared for this process, and the step itself."""

from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import OPTIMIZER_NAME
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ..local_model import LocalModel
from ..parallel.agree import agree
from ..parallel.block_parallel import BlockParallel
from ..parallel.data_parallel import (
    Replica,
    average_gradients,
    average_statistics,
    kept_here,
    prepare_blocks,
    prepare_precision,
)
from ..parallel.places import Places, create_places
from ..parallel.sharded import gathered, shard_model, shard_network
from ..planner import budget_bytes, place
from ..runs.model import step_setting
from ..step import Backward
from ..tasks import Classification
from .checks import check_flags
from .compile import compile_blocks
from .observe import Observer
from .optim import create_optimizers, create_schedulers


@dataclass
class Trainer:
    """Trains a model batch by batch, each block by its own optimizer, on any number of devices.

    Args:
        accelerator: That the blocks and optimizers were prepared with.
        places: This process's place among the others.
        parallel: This process's share of the model.
        blocks: Its blocks, prepared: wrapped for data parallelism and mixed precision.
        optimizers: One a block.
        schedulers: One an optimizer.
        updates_per_epoch: Updates, not batches.
        observer: What looks at some of them.
        seed: Of the random numbers that blocks draw.
        mixup: timm's mixup and cutmix, if wanted.
        ema: Moving average of the network's weights, if wanted.
        clip_grad: Largest norm of each block's gradient, if any.
        only_head: Whether the classifier alone learns.
        micro_batches: Slices of a batch that each block runs one after the other.
    """

    accelerator: Accelerator
    places: Places
    parallel: BlockParallel
    blocks: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Scheduler]
    updates_per_epoch: int
    observer: Observer
    seed: int = 0
    mixup: Mixup | None = None
    ema: ModelEmaV3 | None = None
    clip_grad: float | None = None
    only_head: bool = False
    micro_batches: int = 1
    updates: int = 0
    batches: int = field(default=0, init=False)  # since the run began
    scalers: Sequence[torch.amp.GradScaler] = field(init=False)

    @property
    def model(self) -> LocalModel:
        """The model that the blocks are parts of."""
        return self.parallel.model

    def __post_init__(self) -> None:
        # One a block, so that what overflows in one block is no other block's business; one for
        # all where blocks add their gradients up, which takes one scale.
        device, count = self.accelerator.device.type, len(self.blocks)
        if not self.accelerator.scaler:
            self.scalers = []
        elif self.model.spec.overlaps:
            self.scalers = [torch.amp.GradScaler(device)] * count
        else:
            self.scalers = [torch.amp.GradScaler(device) for _ in range(count)]

    @property
    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps of the training beside weights, by the names of its files."""
        optimizers = {
            f"{OPTIMIZER_NAME}_{j}.bin" if j else f"{OPTIMIZER_NAME}.bin": optimizer
            for j, optimizer in zip(self.parallel.own, self.optimizers, strict=True)
        }
        scalers = zip(self.parallel.own, self.scalers, strict=bool(self.scalers))
        return optimizers | {f"scaler_{j}.pt": scaler for j, scaler in scalers}

    @property
    def lr(self) -> float:
        """The learning rate of the last update begun, the head's, the same for every block."""
        return self.optimizers[-1].param_groups[-1]["lr"]

    @property
    def lag(self) -> int:
        """Updates that the first process of a batch may be ahead of the last, and one."""
        return 1 + (self.places.block_count - 1) * (self.parallel.queue + 1)

    def start_epoch(self, epoch: int, batches: int = 0) -> None:
        """Put everything in place for ``epoch``, counted from 0, after so many of its batches."""
        self.model.train(not self.only_head)  # frozen layers keep BatchNorm's statistics
        if self.model.decoder is not None:
            self.model.decoder.train()  # the head of a dense task
        accumulate = self.accelerator.gradient_accumulation_steps
        self._schedule(epoch * self.updates_per_epoch + batches // accumulate)
        self.batches = self.updates * accumulate

    def train_batch(self, images: Tensor, target: Tensor) -> Tensor:
        """Train on one batch of this process; every ``gradient_accumulation_steps``-th updates.

        Args:
            images: Normalised images ``(B, C, H, W)``; features, where others have the first block.
            target: Class indices ``(B,)``.

        Returns:
            Local losses of this process's batch, detached: ``(K,)``, or as far as they are known.
        """
        if self.mixup is not None and self.places.is_first:
            images, target = self.mixup(images, target)
        with self.accelerator.accumulate(*self.blocks):
            output = self.parallel.step(
                images,
                target,
                blocks=self.observer.watch(self.blocks),
                backward=self.observer.watch(self._backwards()),
                step=self._update_block,
                update_momentum=self.accelerator.sync_gradients,
                late=any(isinstance(block, Replica) for block in self.blocks),
                key=(self.seed, self.places.data_index, self.batches),
                micro_batches=self.micro_batches,
                accumulating=lambda j: kept_here(self.blocks[j]),
            )
        self.batches += 1
        if self.accelerator.sync_gradients:
            self._finish_update()
        return output.losses

    def _update_block(self, j: int) -> None:
        """Block j's own update; nothing while gradients accumulate."""
        if not self.accelerator.sync_gradients:
            return
        average_gradients(self.blocks[j])
        with self.observer.turn(j):
            optimizer, scaler = self.optimizers[j], self.scalers[j] if self.scalers else None
            if self.clip_grad is not None or self.observer.look:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                self._clip(j)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
            optimizer.zero_grad()

    def _clip(self, j: int) -> None:
        """Clip block j's gradient, if wanted, and let the observer know its norm."""
        parameters = list(self.blocks[j].parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.observer.grad_norm(j, norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)

    def _backwards(self) -> Sequence[Backward]:
        if not self.scalers:
            return [self.accelerator.backward] * len(self.blocks)
        return [partial(self._scaled_backward, scaler) for scaler in self.scalers]

    def _scaled_backward(self, scaler: torch.amp.GradScaler, loss: Tensor) -> None:
        scaler.scale(loss / self.accelerator.gradient_accumulation_steps).backward()

    def _finish_update(self) -> None:
        for scaler in set(self.scalers):
            scaler.update()
        if self.ema is not None:
            self.ema.update(self.model.network)
        self._schedule(self.updates + 1)

    def _schedule(self, updates: int) -> None:
        self.updates = updates
        for scheduler in self.schedulers:
            scheduler.step_update(updates)

    def gathered(self) -> AbstractContextManager[None]:
        """Within, the model and its average can be evaluated, by any process at any time."""
        averages = [self.ema.module] if self.ema is not None else []
        return gathered(*self.blocks, *averages)

    def finish_epoch(self) -> None:
        """Make the processes' models one, at the same update and with the same statistics."""
        self.parallel.finish()
        if self.places.data is not None:
            averaged = [self.ema.module] if self.ema is not None else []
            average_statistics(self.places.data, self.model, *averaged)


def create_trainer(
    args: Namespace,
    accelerator: Accelerator,
    model: LocalModel,
    batches: int,
    places: Places | None = None,
) -> Trainer:
    """Optimizers, schedules, mixup and EMA as the flags say; blocks wrapped by Accelerate.

    Args:
        args: Flags of the recipe.
        accelerator: For the device, data parallelism and precision.
        model: With its auxiliaries.
        batches: Batches of an epoch.
        places: This process's place among the others; as the flags say by default.

    Raises:
        ValueError: For flags that do not go together.
        UserError: For keywords that the optimizer or schedule does not take.
    """
    check_flags(args, model, batches)
    updates_per_epoch = batches // args.grad_accum_steps
    mixup = create_mixup(args, model)
    places = places or create_places(args.block_parallel, accelerator.device)
    ranges = choose_ranges(args, model)
    if args.channels_last and not args.fsdp:  # FSDP takes contiguous weights; images lead features
        model.to(memory_format=torch.channels_last)
    ema = create_average(args, model, accelerator.device)
    parallel = BlockParallel(model, ranges, places.blocks, accelerator.device, args.queue)
    if ema is not None:
        parallel.keep_own(ema.module)
    if args.compile:
        compile_blocks(parallel.blocks)
    blocks = distribute(args, accelerator, parallel, ema, places)
    optimizers = create_optimizers(args, model, parallel.blocks)  # over shares, where there are
    schedulers = create_schedulers(args, optimizers, updates_per_epoch)
    resident = [] if args.compile or args.fsdp else [model, ema, *optimizers]
    return Trainer(
        accelerator,
        places,
        parallel,
        blocks,
        optimizers,
        schedulers,
        updates_per_epoch,
        Observer(accelerator.device, resident, parallel.own.start),
        args.seed,
        mixup=mixup,
        ema=ema,
        clip_grad=args.clip_grad,
        only_head=args.tune == "head",
        micro_batches=args.micro_batches,
    )


def create_average(args: Namespace, model: LocalModel, device: torch.device) -> ModelEmaV3 | None:
    """timm's moving average of the whole network's weights, if the flags ask for it."""
    if not args.model_ema:
        return None
    network, decay = model.network.to(device), args.model_ema_decay
    # In one go parameters, shares where they are sharded, do not go together with buffers.
    return ModelEmaV3(network, decay=decay, foreach=not args.fsdp)


def distribute(
    args: Namespace,
    accelerator: Accelerator,
    parallel: BlockParallel,
    ema: ModelEmaV3 | None,
    places: Places,
) -> Sequence[nn.Module]:
    """This process's blocks for precision, and for those that have them too or share them."""
    if not args.fsdp:
        return prepare_blocks(accelerator, parallel.blocks, places.data)
    blocks = [prepare_precision(accelerator, block) for block in parallel.blocks]
    if places.data is not None:
        mesh = DeviceMesh.from_group(places.data, accelerator.device.type)
        shard_model(parallel.model, mesh)
        if ema is not None:
            shard_network(ema.module, mesh)
    return blocks


def choose_ranges(args: Namespace, model: LocalModel) -> Sequence[range]:
    """The blocks of each process, by the planner where there is a choice.

    Raises:
        ValueError: For more processes than blocks, a memory limit that cannot be met, overlap.
    """
    if args.block_parallel == 1:
        return [range(len(model.blocks))]
    limits = [budget_bytes(size) for size in args.process_memory or ()]
    about = model, step_setting(args), args.block_parallel, limits, args.calibrate, args.queue
    return agree(lambda: place(*about).ranges)


def create_mixup(args: Namespace, model: LocalModel) -> Mixup | None:
    """timm's mixup and cutmix on device batches, if the flags ask for them.

    Raises:
        ValueError: For an odd batch size, or auxiliaries that need one class an image.
    """
    if not (args.mixup or args.cutmix):
        return None
    if not isinstance(model.task, Classification):
        raise ValueError(f"--mixup and --cutmix mix classes of images; {model.task.name} has none.")
    if args.batch_size % 2:
        raise ValueError(
            f"--mixup and --cutmix mix pairs of images, but --batch-size {args.batch_size} is odd; "
            f"expected {args.batch_size + 1} or another even number."
        )
    if not all(auxiliary.classifies for auxiliary in model.auxiliaries):
        raise ValueError(
            "--mixup and --cutmix give an image two classes, and the contrastive loss needs one; "
            "expected local_loss=cross_entropy with them."
        )
    return model.task.mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
    )
