"""The training run behind ``recipes/train.py``, to be read from top to bottom."""

import time
from argparse import Namespace
from contextlib import closing
from itertools import islice
from typing import Any

from accelerate.utils import set_seed

from ..data import create_loaders
from ..hub.export import export_run, usage
from .checkpoint import Checkpoints, Progress
from .errors import user_errors
from .evaluate import evaluate_exits, validate
from .facts import SUMMARY, save_json
from .learner import Learner, create_learner
from .logging import TrainingBar
from .losses import LossWatch, check_weights
from .report import describe, epoch_line, final_report
from .setup import create_accelerator, create_model, keep_plan, resume_run, run_folder, start_run


def train(args: Namespace) -> dict[str, Any]:
    """Train as the flags say; the summary of the run.

    Raises:
        UserError: For flags that cannot be honoured, and for data or a run that is not there;
            nothing has been written then.
        NonFiniteLoss: If training diverges; the last checkpoint is untouched.
    """
    progress = Progress()
    with user_errors():
        run = run_folder(args)
        accelerator = create_accelerator(args, run, progress)
        loader, val_loader, data = create_loaders(
            args, accelerator, channels_last=args.channels_last
        )
        set_seed(args.seed)  # the same initial weights in every process ...
        model = create_model(args, data)
        keep_plan(args, model)
        learner = create_learner(args, accelerator, model, len(loader))
        averaged = [learner.ema.module] if learner.ema else []
        accelerator.register_for_checkpointing(progress, *averaged)
        checkpoints = Checkpoints(accelerator, model, run / "checkpoints", args.checkpoint_hist)
        set_seed(args.seed, device_specific=True)  # ... and from here random numbers of its own
        if args.resume:
            resume_run(args, checkpoints, progress)
    if accelerator.is_main_process:
        start_run(args, run, data, accelerator.device)
    accelerator.wait_for_everyone()
    done = progress.epoch * learner.updates_per_epoch
    accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": done}})

    total = args.epochs * learner.updates_per_epoch
    started = time.perf_counter()
    with closing(TrainingBar(total, done, accelerator.is_local_main_process)) as bar:
        bar.say(describe(model, data, run))
        while progress.epoch < args.epochs:
            loader.set_epoch(progress.epoch)
            record = train_epoch(learner, loader, progress.epoch, bar, args.log_interval)
            learner.finish_epoch()
            check_weights(model, learner.updates)
            if (progress.epoch + 1) % args.val_interval == 0 or progress.epoch + 1 == args.epochs:
                record |= validate(accelerator, model.backbone, val_loader, "val")
                if learner.ema:
                    record |= validate(accelerator, learner.ema.module, val_loader, "ema_val")
            progress.advance(record["losses"], record.get("val_top1"))
            accelerator.log({"epoch": progress.epoch, **numbers(record)}, step=learner.updates)
            checkpoints.save(progress)
            bar.say(epoch_line(progress.epoch, record))

    summary = {
        "model": model.spec.name,
        "epochs": progress.epoch,
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "blocks": [model.block_name(j) for j in range(len(model.blocks))],
        "losses": progress.losses,
        **evaluate_exits(accelerator, model, val_loader),
        "seconds": time.perf_counter() - started,
    }
    if accelerator.is_main_process:
        exported = export_run(run, run / "export", force=True)
        if learner.ema:
            export_run(run, run / "export-ema", ema=True, force=True)
        save_json(run / SUMMARY, summary)
        print(final_report(model, summary, run))
        print(f"\nload it with timm:\n\n{usage(exported)}")
    accelerator.end_training()
    return summary


def train_epoch(
    learner: Learner, loader: Any, epoch: int, bar: TrainingBar, log_interval: int
) -> dict[str, Any]:
    """One pass over the data, cut to whole updates.

    Returns:
        ``losses``, the mean local losses ``(K,)`` over all processes; ``lr`` of the last update;
        ``images_per_second`` over all processes; ``seconds``.

    Raises:
        NonFiniteLoss: With the block's name and the update.
    """
    accelerator = learner.accelerator
    learner.start_epoch(epoch)
    first = learner.updates + 1
    watch = LossWatch(accelerator, learner.model)
    images_seen, lr, started = 0, learner.lr, time.perf_counter()

    def images_per_second() -> float:
        return images_seen * accelerator.num_processes / (time.perf_counter() - started)

    batches = learner.updates_per_epoch * accelerator.gradient_accumulation_steps
    for images, target in islice(loader, batches):
        update, lr = learner.updates + 1, learner.lr
        watch.add(update, learner.learn(images, target))
        images_seen += len(images)
        if learner.updates == update:
            if update == first or update % log_interval == 0:
                bar.show(epoch + 1, watch.look(), images_per_second())
            bar.advance()
    losses = watch.mean()
    return {
        "lr": lr,
        "losses": losses,
        "images_per_second": images_per_second(),
        "seconds": time.perf_counter() - started,
    }


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """A record as trackers take it: ``losses`` as one number a block."""
    losses = {f"loss_block{j + 1}": loss for j, loss in enumerate(record["losses"])}
    return losses | {key: value for key, value in record.items() if key != "losses"}
