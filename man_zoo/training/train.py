"""The training run behind ``man-zoo train``, to be read from top to bottom."""

import math
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object, set_seed
from torch import Tensor

from ..console import user_errors
from ..data import create_loaders, create_test_loader
from ..local_model import LocalModel
from ..micro_batches import GHOST, normalises_batches
from ..parallel.places import create_places
from ..parallel.termination import Stopped, Termination
from ..runs.folder import CHECKPOINTS
from ..runs.model import create_model, preprocessing_of
from .bad_images import count_bad_images
from .bar import TrainingBar
from .checkpoint import Checkpoints, Progress
from .evaluate import evaluate_exits, validate
from .losses import LossWatch, check_weights
from .observe import merge
from .report import describe, epoch_line
from .setup import create_accelerator, keep_plan, resume_run, start_run
from .so_far import EpochSoFar
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


def train(args: Namespace, run: Path, termination: Termination) -> Finished:
    """Train as the flags say.

    Args:
        args: Flags of the run.
        run: Its folder, as :func:`~man_zoo.training.setup.open_run` gives it.
        termination: SIGTERM, heeded.

    Raises:
        UserError: For flags that cannot be honoured, and for data that are not there or a run that
            cannot be read; nothing has been written then.
        NonFiniteLoss: If training diverges; the last checkpoint is untouched.
        Stopped: After SIGTERM, with a checkpoint of where the run is.
    """
    progress = Progress()
    with user_errors():
        accelerator = create_accelerator(args, run)
        places = create_places(args.block_parallel, accelerator.device)
        loader, val_loader, data = create_loaders(
            args,
            accelerator,
            preprocessing_of(args.model, args.pretrained),
            shard=places.shard,
            reads=places.is_first,
            channels_last=args.channels_last,
        )
        if places.blocks is not None and loader.iterable:
            raise ValueError(
                f"--block-parallel needs to know how many batches there are, and {args.dataset} is "
                "a stream; use a folder, or data parallel without it."
            )
        set_seed(args.seed)  # the same initial weights in every process ...
        model = create_model(args, data)
        keep_plan(args, model)
        task = model.task
        batches = places.from_first(len(loader))
        trainer = create_trainer(args, accelerator, model, batches, places)
        parallel = trainer.parallel
        average = trainer.ema.module if trainer.ema else None
        watch = LossWatch(places, model, accelerator.device)
        modules = [model] if average is None else [model, average]
        so_far = EpochSoFar(watch, trainer.observer, modules, places, parallel.own.stop)
        checkpoints = Checkpoints(
            accelerator,
            places,
            model,
            average,
            trainer.states,
            progress,
            so_far,
            run / CHECKPOINTS,
            args.checkpoint_hist,
            sharded=args.fsdp,
        )
        set_seed(args.seed + places.data_index)  # ... and from here random numbers of its own
        if args.resume:
            resume_run(args, checkpoints, progress)
            parallel.refresh()
    if accelerator.is_main_process:
        start_run(args, run, data, accelerator.device)
        checkpoints.tidy()
    accelerator.wait_for_everyone()
    done = progress.epoch * trainer.updates_per_epoch + progress.batches // args.grad_accum_steps
    start_trackers(accelerator, args, run, progress, done)

    total = args.epochs * trainer.updates_per_epoch
    # The last of several that share the blocks knows all losses.
    tells = accelerator.is_local_main_process if places.blocks is None else places.tells

    def passes(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Once through a loader; to its end where other processes wait for what comes."""
        if places.blocks is None:
            return termination.until_asked(loader)  # a stream's length is only about right
        return parallel.batches(loader, places.from_first(len(loader)))

    with closing(TrainingBar(total, done, tells)) as bar:
        bar.say(describe(model, data, run))
        if args.micro_batches > 1 and not trainer.only_head and normalises_batches(model):
            bar.say(GHOST)
        termination.begin()
        try:
            while progress.epoch < args.epochs:
                loader.set_epoch(progress.epoch, progress.batches)
                record = train_epoch(
                    trainer, loader, progress, so_far, bar, termination, args.log_interval
                )
                epoch = progress.epoch + 1
                if epoch % args.val_interval == 0 or epoch == args.epochs:
                    if places.blocks is not None:
                        # Nothing stops them in there, and a launcher may not wait for its end.
                        checkpoints.save()
                    networks = {"val": model.network}
                    if average is not None:
                        networks["ema_val"] = average
                    for name, network in networks.items():
                        images = passes(val_loader)
                        with trainer.gathered():
                            record |= validate(accelerator, task, parallel, network, images, name)
                termination.look()
                if args.skip_bad_images:
                    bad = val_loader.bad_images if "val_loss" in record else ()
                    record |= count_bad_images(so_far.bad_images, bad, bar)
                score = record.get(f"val_{task.main_score}")
                progress.advance(record["losses"], score, record["seconds"])
                so_far.begin()
                accelerator.log(
                    {"epoch": progress.epoch, **numbers(record, data.names)},
                    step=trainer.updates,
                )
                checkpoints.save()
                bar.say(epoch_line(progress.epoch, record, task))
        except Stopped:
            parallel.finish()
            check_weights(places, model, trainer.updates)
            checkpoints.save()
            accelerator.wait_for_everyone()  # a launcher ends the others when one has ended
            accelerator.end_training()
            raise

    test_loader = val_loader
    if args.val_holdout is not None:
        with user_errors():
            test_loader = create_test_loader(
                args, accelerator, data, shard=places.shard, channels_last=args.channels_last
            )
    with trainer.gathered():
        scores = evaluate_exits(accelerator, task, model, passes(test_loader), parallel)
    summary = {
        "model": model.spec.name,
        "epochs": progress.epoch,
        f"best_{task.main_score}": progress.best_score,
        "best_epoch": progress.best_epoch,
        "blocks": [model.block_name(j) for j in range(len(model.blocks))],
        "losses": progress.losses,
        **scores,
        "seconds": progress.seconds,
    }
    termination.look()  # the scores of a part of the images are none
    accelerator.end_training()
    return Finished(model, summary, accelerator.is_main_process)


def train_epoch(
    trainer: Trainer,
    loader: Any,
    progress: Progress,
    so_far: EpochSoFar,
    bar: TrainingBar,
    termination: Termination,
    log_interval: int,
) -> dict[str, Any]:
    """One pass over the data, cut to whole updates; what is left of it, if the run was stopped.

    Returns:
        ``losses``, the mean local losses ``(K,)`` over all processes; ``lr`` of the last update;
        ``images_per_second`` over all processes; ``seconds``; and what
        :class:`~man_zoo.training.observe.Observer` has seen of the blocks, in all processes.

    Raises:
        NonFiniteLoss: With the block's name and the update.
        Stopped: After SIGTERM, before the last update.
    """
    accelerator, places, parallel = trainer.accelerator, trainer.places, trainer.parallel
    lr = trainer.lr
    trainer.start_epoch(progress.epoch, progress.batches)
    first = progress.epoch * trainer.updates_per_epoch + 1
    last = first + trainer.updates_per_epoch - 1
    batches = trainer.updates_per_epoch * accelerator.gradient_accumulation_steps
    if progress.batches == batches:  # the run was stopped in its validation
        return {**so_far.record}
    begun = time.perf_counter()
    started = begun - so_far.seconds

    def images_per_second() -> float:
        return so_far.images * places.data_count / so_far.seconds

    parallel.waited = 0.0
    for images, target in parallel.batches(loader, batches - progress.batches):
        update, lr = trainer.updates + 1, trainer.lr
        looked_at = update in (first, last) or update % log_interval == 0
        trainer.observer.begin(update, looked_at)
        so_far.watch.add(update, trainer.train_batch(images, target))
        so_far.images += len(images)
        so_far.bad_images.update(loader.bad_images)
        so_far.seconds = time.perf_counter() - started
        progress.batches += 1
        if trainer.updates == update:
            if looked_at:
                bar.show(progress.epoch + 1, so_far.watch.look(), images_per_second())
            bar.advance()
            if progress.batches < batches:
                termination.look(lag=trainer.lag)
    losses = so_far.watch.mean()
    trainer.finish_epoch()
    check_weights(places, trainer.model, trainer.updates)
    progress.batches = batches  # of a stream, there may have been fewer
    record = {
        "lr": lr,
        "losses": losses,
        "images_per_second": images_per_second(),
        "seconds": so_far.seconds,
    }
    seen = trainer.observer.record()
    if places.blocks is not None:
        busy = 1 - parallel.waited / (time.perf_counter() - begun)
        seen[f"busy_process{places.block_index + 1}"] = busy
    so_far.record = places.from_last(record) | merge(gather_object([seen]))
    return {**so_far.record}


def numbers(record: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """A record as trackers take it: one number a block in ``losses``, one a class elsewhere."""
    found = {f"loss_block{j + 1}": loss for j, loss in enumerate(record["losses"])}
    for key, value in record.items():
        if not isinstance(value, list):
            found[key] = value
        elif key != "losses":
            found |= {
                f"{key}_{name}": of_class
                for name, of_class in zip(names, value, strict=True)
                if not math.isnan(of_class)
            }
    return found
