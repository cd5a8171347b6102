"""What has to stand before a run can start: its folder, Accelerate, and what the planner chose."""

import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration

from ..console import UserError, whole_folder
from ..data import LoaderInfo
from ..local_model import LocalModel
from ..parallel.agree import agree
from ..parallel.processes import on_cpu, share_of_cores
from ..runs.config import asks_for_a_plan, read_args, refuse_changes, save_args
from ..runs.folder import ARGS, CHECKPOINTS, SUMMARY, check_links, load_log
from ..runs.lock import hold
from ..runs.metadata import save_metadata
from .checkpoint import Checkpoints, Progress
from .trackers import tracker_names


@contextmanager
def open_run(args: Namespace) -> Iterator[Path]:
    """Where the run lives, in every process the same; no other start can have it meanwhile.

    Raises:
        UserError: If a new run would be written over something, or another process is in the run.
    """
    PartialState(cpu=on_cpu())  # the processes meet
    with ExitStack() as held:
        yield agree(lambda: _take_folder(args, held))


def _take_folder(args: Namespace, held: ExitStack) -> Path:
    run = Path(args.resume) if args.resume else Path(args.output) / _name(args)
    held.enter_context(hold(run))
    if args.resume:
        refuse_changes(args)  # another run may have come here since the flags were read
        check_links(run)
    else:
        _check_free(run, args.overwrite)
    return run


def _name(args: Namespace) -> str:
    if args.experiment:
        return args.experiment
    # A model of a folder or of the Hub has slashes in its name.
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{args.model}-{args.dataset}"
    return re.sub(r"[^\w.-]+", "-", name)


def _check_free(run: Path, overwrite: bool) -> None:
    if run.is_symlink():
        raise UserError(f"{run} is a link; remove it, or take another --experiment.")
    if not run.exists():
        return
    if not overwrite:
        raise UserError(
            f"{run} is there already; --resume {run} goes on, --overwrite starts it anew."
        )
    if not (run.is_dir() and (_is_run(run) or not any(run.iterdir()))):
        raise UserError(f"{run} is no run of man_zoo, so --overwrite does not replace it.")


def _is_run(folder: Path) -> bool:
    try:
        read_args(folder)
    except UserError:
        return False
    return True


def start_run(args: Namespace, run: Path, data: LoaderInfo, device: torch.device) -> None:
    """The run's folder with its flags and metadata, in place of an old one if it is a new run."""
    if args.resume:
        (run / SUMMARY).unlink(missing_ok=True)  # a run that goes on is not finished
        _describe(args, run, data, device)
    else:
        with whole_folder(run) as unfinished:
            _describe(args, unfinished, data, device)


def _describe(args: Namespace, run: Path, data: LoaderInfo, device: torch.device) -> None:
    (run / CHECKPOINTS).mkdir(exist_ok=True)
    save_args(args, run / ARGS)
    save_metadata(run, data, device)


def resume_run(args: Namespace, checkpoints: Checkpoints, progress: Progress) -> None:
    """Go back to the run's newest whole checkpoint; a run that has none yet begins anew.

    Raises:
        UserError: If the run is already further than the flags say, or cannot be read.
    """
    checkpoints.resume()
    if progress.epoch:
        load_log(Path(args.resume))  # before anything is written
    begun = progress.epoch + bool(progress.batches)
    if begun > args.epochs:
        part = " and is in the next" if progress.batches else ""
        raise UserError(
            f"{args.resume} has finished {progress.epoch} epochs{part}; "
            f"expected --epochs {begun} or more."
        )


def create_accelerator(args: Namespace, run: Path) -> Accelerator:
    """Accelerate, as the flags say; a precision that the launcher chose is written into them.

    Raises:
        ValueError: For a precision that the device does not have, a tracker that there is not.
    """
    tracker_names(args.log_with)
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.grad_accum_steps,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run)),
    )
    args.mixed_precision = accelerator.mixed_precision  # a run that goes on may start otherwise
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
    if asks_for_a_plan(args):
        args.memory_budget = None
        args.k, args.cuts = spec.k, list(spec.cuts or ()) or None
        args.recompute = list(spec.recompute or ()) or None
