"""What has to stand before a run can start: its folder, Accelerate, and what the planner chose."""

import shutil
from argparse import Namespace
from datetime import datetime
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, broadcast_object_list

from ..console import UserError
from ..data import LoaderInfo
from ..local_model import LocalModel
from ..parallel.data_parallel import DDP_KEYWORDS
from ..parallel.processes import on_cpu, share_of_cores
from ..planner import BALANCED
from ..runs.config import save_args
from ..runs.folder import ARGS, CHECKPOINTS, SUMMARY
from ..runs.metadata import save_metadata
from .checkpoint import Checkpoints, Progress
from .trackers import tracker_names


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
    """The run's folder with its flags and metadata; emptied first unless the run is resumed."""
    if not args.resume:
        shutil.rmtree(run, ignore_errors=True)
    (run / SUMMARY).unlink(missing_ok=True)  # a run that goes on is not finished
    (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    save_args(args, run / ARGS)
    save_metadata(run, data, device)


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


def create_accelerator(args: Namespace, run: Path) -> Accelerator:
    """Accelerate, as the flags say.

    Raises:
        ValueError: For a precision that the device does not have, a tracker that there is not.
    """
    tracker_names(args.log_with)
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.grad_accum_steps,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run)),
        kwargs_handlers=[DDP_KEYWORDS],
    )
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "fp16":
            raise ValueError("--mixed-precision fp16 is not for the CPU; expected bf16 or no.")
        torch.set_num_threads(args.cpu_threads or share_of_cores())
    return accelerator


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
