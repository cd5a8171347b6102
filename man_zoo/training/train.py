"""The training run behind ``man-zoo train``, to be read from top to bottom."""

import time
from argparse import Namespace
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object, set_seed

from ..console import user_errors
from ..data import create_loaders, create_test_loader
from ..local_model import LocalModel
from ..parallel.launcher import end_with_launcher
from ..runs.folder import CHECKPOINTS
from ..runs.model import create_model
from ..tasks import Classification
from .bar import TrainingBar
from .checkpoint import Checkpoints, Progress
from .evaluate import evaluate_exits, validate
from .losses import LossWatch, check_weights
from .observe import merge
from .report import describe, epoch_line
from .setup import create_accelerator, keep_plan, resume_run, start_run
from .trackers import start_trackers
from .trainer import Trainer, create_trainer


@dataclass(frozen=True)
class Finished:
    """A run that has come to its end.

    Args:
        model: As it was trained last.
        summary: How it ended.
        is_main: Whether this process writes and prints for all.
    """

    model: LocalModel
    summary: dict[str, Any]
    is_main: bool


def train(args: Namespace, run: Path) -> Finished:
    """Train as the flags say.

    Args:
        args: Flags of the run.
        run: Its folder, as :func:`~man_zoo.training.setup.open_run` gives it.

    Raises:
        UserError: For flags that cannot be honoured, and for data that are not there or a run that
            cannot be read; nothing has been written then.
        NonFiniteLoss: If training diverges; the last checkpoint is untouched.
    """
    progress = Progress()
    with user_errors():
        end_with_launcher(f"go on with --resume {run}")
        accelerator = create_accelerator(args, run)
        loader, val_loader, data = create_loaders(
            args, accelerator, channels_last=args.channels_last
        )
        task = Classification(data.num_classes)
        set_seed(args.seed)  # the same initial weights in every process ...
        model = create_model(args, data)
        keep_plan(args, model)
        trainer = create_trainer(args, accelerator, task, model, len(loader))
        average = trainer.ema.module if trainer.ema else None
        checkpoints = Checkpoints(
            accelerator,
            model,
            average,
            trainer.states,
            progress,
            run / CHECKPOINTS,
            args.checkpoint_hist,
        )
        set_seed(args.seed, device_specific=True)  # ... and from here random numbers of its own
        if args.resume:
            resume_run(args, checkpoints, progress)
    if accelerator.is_main_process:
        start_run(args, run, data, accelerator.device)
        checkpoints.tidy()
    accelerator.wait_for_everyone()
    done = progress.epoch * trainer.updates_per_epoch
    start_trackers(accelerator, args, run, progress, done)

    total = args.epochs * trainer.updates_per_epoch
    started = time.perf_counter()
    with closing(TrainingBar(total, done, accelerator.is_local_main_process)) as bar:
        bar.say(describe(model, data, run))
        while progress.epoch < args.epochs:
            loader.set_epoch(progress.epoch)
            record = train_epoch(trainer, loader, progress.epoch, bar, args.log_interval)
            trainer.finish_epoch()
            check_weights(model, trainer.updates)
            if (progress.epoch + 1) % args.val_interval == 0 or progress.epoch + 1 == args.epochs:
                record |= validate(accelerator, task, model.backbone, val_loader, "val")
                if average is not None:
                    record |= validate(accelerator, task, average, val_loader, "ema_val")
            progress.advance(record["losses"], record.get("val_top1"))
            accelerator.log({"epoch": progress.epoch, **numbers(record)}, step=trainer.updates)
            checkpoints.save()
            bar.say(epoch_line(progress.epoch, record))

    test_loader = val_loader
    if args.val_holdout is not None:
        with user_errors():
            test_loader = create_test_loader(
                args, accelerator, data, channels_last=args.channels_last
            )
    summary = {
        "model": model.spec.name,
        "epochs": progress.epoch,
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "blocks": [model.block_name(j) for j in range(len(model.blocks))],
        "losses": progress.losses,
        **evaluate_exits(accelerator, task, model, test_loader),
        "seconds": time.perf_counter() - started,
    }
    accelerator.end_training()
    return Finished(model, summary, accelerator.is_main_process)


def train_epoch(
    trainer: Trainer, loader: Any, epoch: int, bar: TrainingBar, log_interval: int
) -> dict[str, Any]:
    """One pass over the data, cut to whole updates.

    Returns:
        ``losses``, the mean local losses ``(K,)`` over all processes; ``lr`` of the last update;
        ``images_per_second`` over all processes; ``seconds``; and what
        :class:`~man_zoo.training.observe.Observer` has seen of the blocks, in all processes.

    Raises:
        NonFiniteLoss: With the block's name and the update.
    """
    accelerator = trainer.accelerator
    trainer.start_epoch(epoch)
    first, last = trainer.updates + 1, trainer.updates + trainer.updates_per_epoch
    watch = LossWatch(accelerator, trainer.model)
    images_seen, lr, started = 0, trainer.lr, time.perf_counter()

    def images_per_second() -> float:
        return images_seen * accelerator.num_processes / (time.perf_counter() - started)

    batches = trainer.updates_per_epoch * accelerator.gradient_accumulation_steps
    for images, target in islice(loader, batches):
        update, lr = trainer.updates + 1, trainer.lr
        looked_at = update in (first, last) or update % log_interval == 0
        trainer.observer.begin(update, looked_at)
        watch.add(update, trainer.train_batch(images, target))
        images_seen += len(images)
        if trainer.updates == update:
            if looked_at:
                bar.show(epoch + 1, watch.look(), images_per_second())
            bar.advance()
    losses = watch.mean()
    return {
        "lr": lr,
        "losses": losses,
        "images_per_second": images_per_second(),
        "seconds": time.perf_counter() - started,
        **merge(gather_object([trainer.observer.record()])),
    }


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """A record as trackers take it: ``losses`` as one number a block."""
    losses = {f"loss_block{j + 1}": loss for j, loss in enumerate(record["losses"])}
    return losses | {key: value for key, value in record.items() if key != "losses"}
