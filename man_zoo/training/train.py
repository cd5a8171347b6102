"""The training run behind ``recipes/train.py``, to be read from top to bottom."""

import os
import shutil
import time
from argparse import Namespace
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    ProjectConfiguration,
    set_seed,
)
from timm.data import Mixup
from timm.models import save_for_hf
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn

from ..local_model import LocalModel
from ..localize import localize
from ..spec import END_TO_END, is_zoo_name, parse_name
from .checkpoint import Checkpoints, Progress
from .config import save_args
from .data import LoaderInfo, create_loaders
from .evaluate import evaluate
from .logging import JSONLTracker, TrainingBar, table
from .optim import create_optimizers, create_schedulers


class NonFiniteLoss(RuntimeError):
    """A local loss was NaN or infinite."""


def train(args: Namespace) -> dict[str, Any]:
    """Train as the flags say; the summary of the run.

    Raises:
        ValueError: For flags that cannot be honoured.
        FileNotFoundError: For data or a run that is not there.
        FileExistsError: If the run folder is there already.
        NonFiniteLoss: If a local loss becomes NaN or infinite.
    """
    set_seed(args.seed)
    run = run_folder(args)
    accelerator = create_accelerator(args, run)
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(args.cpu_threads or max(1, cores // accelerator.num_processes))
    train_loader, val_loader, data = create_loaders(
        args, accelerator, channels_last=args.channels_last
    )
    model = create_model(args, data).to(accelerator.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.compile:
        compile_blocks(model.blocks)
    updates_per_epoch = len(train_loader) // args.grad_accum_steps
    if updates_per_epoch == 0:
        raise ValueError(
            f"--grad-accum-steps {args.grad_accum_steps} is more than the {len(train_loader)} "
            "batches of an epoch; expected at most that many."
        )
    optimizers = create_optimizers(args, model.blocks)
    schedulers = create_schedulers(args, optimizers, updates_per_epoch)
    prepared = accelerator.prepare(*model.blocks, *optimizers)
    blocks, optimizers = prepared[: len(model.blocks)], prepared[len(model.blocks) :]

    progress = Progress()
    ema = ModelEmaV3(model.backbone, decay=args.model_ema_decay) if args.model_ema else None
    accelerator.register_for_checkpointing(progress, *([ema.module] if ema else []))
    checkpoints = Checkpoints(accelerator, model, run / "checkpoints", args.checkpoint_hist)
    if args.resume:
        checkpoints.resume()
    elif accelerator.is_main_process:
        start_run(args, run)
    accelerator.wait_for_everyone()
    accelerator.trackers = []  # the JSON lines follow the checkpoint that is resumed
    start_trackers(accelerator, args, run, progress)

    updates = args.epochs * updates_per_epoch
    bar = TrainingBar(
        updates, progress.epoch * updates_per_epoch, accelerator.is_local_main_process
    )
    bar.say(describe(model, data, run))
    started, metrics = time.perf_counter(), {}
    while progress.epoch < args.epochs:
        epoch_started = time.perf_counter()
        train_loader.set_epoch(progress.epoch)
        losses = train_epoch(
            args, accelerator, model, blocks, optimizers, schedulers, train_loader, progress, bar, ema
        )
        train_seconds = time.perf_counter() - epoch_started
        if accelerator.num_processes > 1:
            distribute_bn(model, accelerator.num_processes, reduce=True)
        metrics = validate(accelerator, model.backbone, val_loader)
        if ema:
            of_ema = validate(accelerator, ema.module, val_loader)
            metrics |= {f"ema_{key}": value for key, value in of_ema.items()}
        progress.epoch += 1
        if metrics["val_top1"] > progress.best_top1:
            progress.best_top1, progress.best_epoch = metrics["val_top1"], progress.epoch
        images = updates_per_epoch * args.grad_accum_steps * args.batch_size
        record = {
            "epoch": progress.epoch,
            "lr": optimizers[0].param_groups[0]["lr"],
            **{f"loss_block{j + 1}": loss for j, loss in enumerate(losses)},
            **metrics,
            "images_per_second": images * accelerator.num_processes / train_seconds,
            "seconds": train_seconds,
        }
        accelerator.log(record, step=progress.epoch * updates_per_epoch)
        checkpoints.save(progress)
        bar.say(
            f"epoch {progress.epoch:3d}  "
            f"loss {' '.join(f'{losses[j]:.3f}' for j in few(len(losses)))}  "
            f"val top-1 {metrics['val_top1']:.2f} %  top-5 {metrics['val_top5']:.2f} %  "
            f"{record['images_per_second']:.0f} images/s"
        )
    bar.close()
    summary = finish(accelerator, model, val_loader, run, progress, time.perf_counter() - started)
    accelerator.end_training()
    return summary


# Set-up --------------------------------------------------------------------------------------------


def run_folder(args: Namespace) -> Path:
    """Where the run lives.

    Raises:
        FileExistsError: If a new run would be written over an old one.
    """
    if args.resume:
        return Path(args.resume)
    name = args.experiment
    if not name:
        data = args.dataset.replace("/", "-")
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{args.model}-{data}"
    run = Path(args.output) / name
    if run.exists() and not args.overwrite:
        raise FileExistsError(
            f"{run} is there already; --resume {run} goes on, --overwrite starts it anew."
        )
    return run


def start_run(args: Namespace, run: Path) -> None:
    """An empty run folder with the flags in it."""
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    save_args(args, run / "args.yaml")


def create_accelerator(args: Namespace, run: Path) -> Accelerator:
    """Accelerate, told that several blocks are trained in one step."""
    return Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.grad_accum_steps,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run)),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            GradScalerKwargs(),
        ],
    )


def create_model(args: Namespace, data: LoaderInfo) -> LocalModel:
    """The model that the flags name, for the data's classes and size.

    Raises:
        ValueError: For an unknown name, method or keyword, an impossible K.
    """
    channels, *size = data.input_size
    flags = {"cuts": args.cuts, "form": args.form, "momentum": args.man_momentum}
    keywords = {key: value for key, value in flags.items() if value is not None} | args.model_kwargs
    if channels != 3:
        keywords["in_chans"] = channels
    backbone, method, k = args.model, args.method or END_TO_END, args.k
    if is_zoo_name(args.model):
        backbone, named, named_k = parse_name(args.model)
        method, k = args.method or named, args.k or named_k
    overlay = {"mean": data.mean, "std": data.std}
    if data.class_names:
        overlay["label_names"] = list(data.class_names)
    return localize(
        backbone,
        method,
        k,
        pretrained=args.pretrained,
        auxiliaries=True,
        criterion=nn.CrossEntropyLoss(label_smoothing=args.smoothing),
        img_size=tuple(size),
        num_classes=data.num_classes,
        pretrained_cfg_overlay=overlay,
        **keywords,
    )


def compile_blocks(blocks: list[nn.Module]) -> None:
    """Compile every block in place; blocks of one shape share their code."""
    torch._dynamo.config.recompile_limit = max(64, 2 * len(blocks))
    for block in blocks:
        block.compile(dynamic=False)


def start_trackers(
    accelerator: Accelerator, args: Namespace, run: Path, progress: Progress
) -> None:
    """TensorBoard and JSON lines, both through Accelerate."""
    accelerator.log_with = ["tensorboard", JSONLTracker(run / "log.jsonl", progress.epoch)]
    flat = {key: value for key, value in vars(args).items() if isinstance(value, int | float | str)}
    accelerator.init_trackers("tensorboard", config=flat)


# The loop ------------------------------------------------------------------------------------------


def train_epoch(
    args: Namespace,
    accelerator: Accelerator,
    model: LocalModel,
    blocks: list[nn.Module],
    optimizers: list[Any],
    schedulers: list[Any],
    loader: Any,
    progress: Progress,
    bar: TrainingBar,
    ema: ModelEmaV3 | None,
) -> list[float]:
    """One pass over the data; the mean local losses ``(K,)``, over all processes.

    Raises:
        NonFiniteLoss: With the block's name and the update.
    """
    model.train()
    updates_per_epoch = len(loader) // args.grad_accum_steps
    update = progress.epoch * updates_per_epoch
    mixup = create_mixup(args, model.backbone.num_classes)
    watch = LossWatch(model, accelerator)

    def step(j: int) -> None:
        if accelerator.sync_gradients and args.clip_grad:
            accelerator.unscale_gradients(optimizers[j])
            nn.utils.clip_grad_norm_(blocks[j].parameters(), args.clip_grad)
        optimizers[j].step()
        optimizers[j].zero_grad()

    for scheduler in schedulers:
        scheduler.step_update(update)
    last_look, seen = time.perf_counter(), 0
    batches = iter(loader)
    for _ in range(updates_per_epoch * args.grad_accum_steps):
        images, target = next(batches)
        if mixup is not None:
            images, target = mixup(images, target)
        with accelerator.accumulate(*blocks):
            output = model.local_step(
                images,
                target,
                blocks=blocks,
                backward=accelerator.backward,
                step=step,
                update_momentum=accelerator.sync_gradients,
            )
        watch.add(update, output.losses)
        seen += len(images) * accelerator.num_processes
        if not accelerator.sync_gradients:
            continue
        update += 1
        for scheduler in schedulers:
            scheduler.step_update(update)
        if ema is not None:
            ema.update(model.backbone)
        if update % args.log_interval == 0:
            losses = watch.look()
            now = time.perf_counter()
            epoch = f"epoch {progress.epoch + 1}/{args.epochs}"
            bar.update(epoch, losses, seen / (now - last_look))
            last_look, seen = now, 0
        bar.advance()
    return watch.mean()


def create_mixup(args: Namespace, classes: int) -> Mixup | None:
    """timm's mixup and cutmix on device batches, with the smoothing that then replaces the loss's."""
    if not (args.mixup or args.cutmix):
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        label_smoothing=0.0,
        num_classes=classes,
    )


@dataclass
class _Seen:
    update: int
    losses: Tensor


class LossWatch:
    """Local losses of an epoch; looks at them now and then, because each look waits for the device.

    Args:
        model: For the names of the blocks.
        accelerator: For the mean over processes.
    """

    def __init__(self, model: LocalModel, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self.waiting: list[_Seen] = []
        self.total, self.count = torch.zeros((), device=accelerator.device), 0

    def add(self, update: int, losses: Tensor) -> None:
        self.waiting.append(_Seen(update, losses))

    def look(self) -> list[float]:
        """The newest losses ``(K,)``.

        Raises:
            NonFiniteLoss: If one since the last look was not finite.
        """
        losses = self.accelerator.reduce(torch.stack([s.losses for s in self.waiting]), "mean")
        finite = losses.isfinite()
        if not finite.all():
            row, block = (~finite).nonzero()[0].tolist()
            raise NonFiniteLoss(
                f"The loss of block {block + 1} ({self.model.block_name(block)}) was "
                f"{losses[row, block].item()} at update {self.waiting[row].update + 1}; "
                "the last checkpoint is untouched. A lower --lr or --clip-grad may help."
            )
        self.total, self.count = self.total + losses.sum(0), self.count + len(losses)
        self.waiting.clear()
        return losses[-1].tolist()

    def mean(self) -> list[float]:
        """Mean losses ``(K,)`` since the start."""
        if self.waiting:
            self.look()
        return (self.total / self.count).tolist()


# Validation and the end ----------------------------------------------------------------------------


def validate(accelerator: Accelerator, backbone: nn.Module, loader: Any) -> dict[str, float]:
    """Accuracy of the plain backbone."""
    backbone.eval()
    result = evaluate(accelerator, lambda images: [backbone(images)], loader)
    return {f"val_{key}": result[key] for key in ("top1", "top5", "loss")}


def finish(
    accelerator: Accelerator,
    model: LocalModel,
    loader: Any,
    run: Path,
    progress: Progress,
    seconds: float,
) -> dict[str, Any]:
    """The exported backbone, and a table of what every block can do."""
    model.eval()
    result = evaluate_exits(accelerator, model, loader)
    summary = {
        "model": model.spec.name,
        "epochs": progress.epoch,
        "top1": result["top1"],
        "top5": result["top5"],
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "exits": result["exits"],
        "seconds": seconds,
    }
    if accelerator.is_main_process:
        export(model, run / "export")
        print(summary_table(model, summary, run))
    accelerator.wait_for_everyone()
    return summary


def evaluate_exits(accelerator: Accelerator, model: LocalModel, loader: Any) -> dict[str, Any]:
    """Accuracy of the network and, where the auxiliaries classify, of every early exit."""
    classify = all(aux.classifies for aux in model.auxiliaries)
    if not classify:
        return evaluate(accelerator, lambda images: [model(images)], loader)
    return evaluate(accelerator, model.forward_exits, loader, outputs=len(model.blocks))


def export(model: LocalModel, folder: Path) -> None:
    """The backbone alone in timm's hub format: ``model.safetensors`` and ``config.json``."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_for_hf(model.backbone.to(memory_format=torch.contiguous_format), str(unfinished), safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def few(blocks: int) -> list[int]:
    """First, middle and last block."""
    return sorted({0, blocks // 2, blocks - 1})


def describe(model: LocalModel, data: LoaderInfo, run: Path) -> str:
    """Two lines on what is about to be trained."""
    backbone = sum(p.numel() for p in model.backbone.parameters())
    auxiliaries = sum(p.numel() for p in model.auxiliaries.parameters())
    return (
        f"{model.spec.name}: {len(model.blocks)} local blocks, {backbone / 1e6:.2f} M parameters "
        f"and {auxiliaries / 1e6:.2f} M in auxiliaries\n"
        f"{data.name}: {data.train_count} images to train on, {data.val_count} to validate; {run}"
    )


def summary_table(model: LocalModel, summary: dict[str, Any], run: Path) -> str:
    """What every block can do, and how the run ended."""
    exits = summary["exits"]
    rows = [
        (f"{j + 1}  {model.block_name(j)}", f"{top1:.2f}")
        for j, top1 in zip(range(len(model.blocks) - len(exits), len(model.blocks)), exits, strict=True)
    ]
    return "\n".join(
        [
            "",
            table(("block", "val top-1 %"), rows),
            "",
            f"{summary['model']} after {summary['epochs']} epochs: top-1 {summary['top1']:.2f} %, "
            f"top-5 {summary['top5']:.2f} %, best top-1 {summary['best_top1']:.2f} % "
            f"(epoch {summary['best_epoch']}), {summary['seconds']:.0f} s",
            f"checkpoints, log and exported backbone: {run}",
        ]
    )
