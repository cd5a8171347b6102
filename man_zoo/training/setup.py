"""What has to stand before a run can start: its folder, Accelerate, the model."""

import os
import shutil
from argparse import Namespace
from datetime import datetime
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
)
from timm.models import split_model_name_tag
from torch import nn

from ..data import LoaderInfo
from ..local_model import LocalModel
from ..localize import localize
from ..planner import BALANCED
from ..registry import with_weights
from ..spec import END_TO_END, is_zoo_name, parse_name
from .checkpoint import Checkpoints, Progress
from .config import save_args
from .errors import UserError, user_errors
from .facts import SUMMARY, save_facts
from .logging import JSONLTracker


def run_folder(args: Namespace) -> Path:
    """Where the run lives; the same in every process.

    Raises:
        FileExistsError: If a new run would be written over an old one.
    """
    if args.resume:
        return Path(args.resume)
    data = args.dataset.replace("/", "-")
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{args.model}-{data}"
    PartialState(cpu=on_cpu())  # the processes meet, for one to tell the others its time
    run = Path(args.output) / broadcast_object_list([name])[0]
    if run.exists() and not args.overwrite:
        raise FileExistsError(
            f"{run} is there already; --resume {run} goes on, --overwrite starts it anew."
        )
    return run


def start_run(args: Namespace, run: Path, data: LoaderInfo, device: torch.device) -> None:
    """The run's folder with its flags and facts; emptied first unless the run is resumed."""
    if not args.resume:
        shutil.rmtree(run, ignore_errors=True)
    (run / SUMMARY).unlink(missing_ok=True)  # a run that goes on is not finished
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_args(args, run / "args.yaml")
    save_facts(run / "facts.json", data, device)


def resume_run(args: Namespace, checkpoints: Checkpoints, progress: Progress) -> None:
    """Go back to the run's newest checkpoint; a run that has none yet begins anew.

    Raises:
        UserError: If the run is already further than the flags say.
    """
    checkpoints.resume()
    if progress.epoch > args.epochs:
        raise UserError(
            f"{args.resume} has finished {progress.epoch} epochs; "
            f"expected --epochs {progress.epoch} or more."
        )


def create_accelerator(args: Namespace, run: Path, progress: Progress) -> Accelerator:
    """Accelerate, logging to TensorBoard and JSON lines in the run's folder.

    Raises:
        ValueError: For a precision that the device does not have.
    """
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.grad_accum_steps,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run)),
        log_with=["tensorboard", JSONLTracker(run / "log.jsonl", progress)],
        kwargs_handlers=[
            # BatchNorm's statistics are averaged once an epoch, not broadcast at every step.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        ],
    )
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "fp16":
            raise ValueError("--mixed-precision fp16 is not for the CPU; expected bf16 or no.")
        torch.set_num_threads(args.cpu_threads or share_of_cores())
    return accelerator


def on_cpu() -> bool:
    """Whether ``accelerate launch --cpu`` asks for the CPU, or there is nothing else.

    Said to Accelerate, because it makes separate runs of several CPU processes otherwise.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def share_of_cores() -> int:
    """The cores that this process may use, divided by the processes of this machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def create_model(
    args: Namespace, data: LoaderInfo, *, auxiliaries: bool = True, pretrained: bool | None = None
) -> LocalModel:
    """The model that the flags name, for the data's classes and size.

    Args:
        args: Flags of the recipe.
        data: What the model is for.
        auxiliaries: Whether to build them.
        pretrained: Whether to load pretrained weights; as the flags say by default.

    Raises:
        ValueError: For an unknown name or method, an impossible K, a cut that does not exist.
        UserError: For a keyword that the model does not take, or weights that there are not.
    """
    channels, height, width = data.input_size
    flags = {
        "cuts": " ".join(args.cuts) if args.cuts else None,
        "recompute": " ".join(args.recompute) if args.recompute else None,
        "form": args.form,
        "momentum": args.man_momentum,
    }
    keywords = {key: value for key, value in flags.items() if value is not None} | args.model_kwargs
    if channels != 3 or args.pretrained:
        keywords["in_chans"] = channels
    keywords["num_classes"] = data.num_classes
    backbone, method, k = args.model, args.method or END_TO_END, args.k
    name, tag = split_model_name_tag(args.model)
    named = is_zoo_name(name)
    if named:
        backbone, named_method, named_k = parse_name(name)
        method, k = args.method or named_method, args.k or named_k
    if END_TO_END in (method, args.method) or args.tune == "head":
        method, k = END_TO_END, None
    with user_errors(TypeError, RuntimeError, about=f"--model {args.model}"):
        if named and args.pretrained:
            keywords = with_weights(name, tag, keywords)
        model = localize(
            backbone,
            method,
            k,
            pretrained=args.pretrained if pretrained is None else pretrained,
            auxiliaries=auxiliaries,
            criterion=nn.CrossEntropyLoss(label_smoothing=args.smoothing),
            img_size=(height, width),
            pretrained_cfg_overlay={"mean": data.mean, "std": data.std},
            memory_budget=args.memory_budget,
            batch_size=args.batch_size,
            opt=args.opt,
            precision=args.mixed_precision or "no",
            **keywords,
        )
    if args.tune == "head":
        model.backbone.requires_grad_(False)
        model.backbone.get_classifier().requires_grad_(True)
    return model


def keep_plan(args: Namespace, model: LocalModel) -> None:
    """Write what was chosen into the flags, MAN's form and what the planner found.

    A run that is resumed does not plan again, and is what it was whatever the default is by then.
    """
    spec = model.spec
    args.form = spec.momentum.form if spec.momentum else None
    if args.memory_budget or args.cuts == [BALANCED]:
        args.memory_budget = None
        args.k, args.cuts = spec.k, list(spec.cuts or ()) or None
        args.recompute = list(spec.recompute or ()) or None
