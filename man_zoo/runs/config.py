"""Flags of the training recipe: argparse, with YAML under it (``-c file.yaml``; flags win)."""

import hashlib
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..console import UserError, write_text
from ..messages import flag_of
from ..planner import BALANCED
from .flags import build_parser
from .folder import ARGS
from .recipes import find_config
from .yaml_flags import INVOCATION, read_yaml, words_of, words_of_flag

# What says where and how fast a run is made, and not which.
_OF_A_PLACE = {
    *INVOCATION,
    *("output", "experiment", "checkpoint_hist", "log_interval", "log_with"),
    *("data_dir", "download", "workers", "validation_batch_size", "cpu_threads"),
    *("block_parallel", "process_memory"),  # who trains which blocks changes no number
}
# Keywords that flags give: another value beside theirs would be one of two.
_FLAGS_OF = {
    "model_kwargs": ("method", "k", "cuts", "recompute", "form", "memory_budget", "pretrained",
                     "img_size", "in_chans", "num_classes"),
    "opt_kwargs": ("lr", "momentum", "weight_decay", "filter_bias_and_bn"),
    "sched_kwargs": ("warmup_epochs", "warmup_lr", "min_lr"),
}  # fmt: skip
# What a resumed run may do differently; all else would be another run.
_MAY_CHANGE = {*_OF_A_PLACE, "epochs", "skip_bad_images"}


def parse_args(
    argv: Sequence[str] | None = None, program: str | None = None, **defaults: Any
) -> Namespace:
    """Flags over YAML over defaults; ``--resume`` takes the run's own saved flags.

    Args:
        argv: The command line's words; those of this process by default.
        program: What help calls the command.
        defaults: A recipe's own, in place of the parser's.

    Raises:
        UserError: For flags that are not understood, here or in a YAML file, for a file or run
            that is not there, and for flags that a resumed run cannot change.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(program)
    parser.set_defaults(**defaults)
    given = parser.parse_args(argv)
    if given.resume == "":
        raise UserError("--resume is empty; expected a run folder.")
    values = _read_run(given.resume, parser) if given.resume else {}
    for name in given.config:
        values |= read_yaml(find_config(name), parser)
    args = parser.parse_args([*words_of(values), *argv])
    if args.resume:
        refuse_changes(args)
        if _may_run_commands(args) and args.data_dir != given.data_dir:
            raise UserError(
                f"{args.resume} reads {args.data_dir}, an address that webdataset may pass on to a "
                "shell; --data-dir with that address says that you trust it."
            )
    _check_schedule(args)
    _check_keywords(args)
    return args


def read_args(run: Path) -> Namespace:
    """The flags of a run; where its data are is left open if it is an address for a shell.

    Raises:
        UserError: If there is no run.
    """
    parser = build_parser()
    args = parser.parse_args(words_of(_read_run(run, parser)))
    if _may_run_commands(args):
        args.data_dir = parser.get_default("data_dir")
    return args


def settings(args: Namespace) -> dict[str, Any]:
    """The flags that make a run what it is, the same wherever it is made."""
    return {key: value for key, value in vars(args).items() if key not in _OF_A_PLACE}


def asks_for_a_plan(args: Namespace) -> bool:
    """Whether the planner chooses the blocks of a run that begins with these flags."""
    return bool(args.memory_budget) or args.cuts == [BALANCED]


def command_line(args: Namespace) -> str:
    """Flags that make the same run again elsewhere: those that differ from the defaults."""
    parser = build_parser()
    actions = {action.dest: action for action in parser._actions}
    words = [
        word
        for key, value in settings(args).items()
        if value != parser.get_default(key)
        for word in words_of_flag(actions[key], value)
    ]
    return shlex.join(words)


def config_hash(args: Namespace) -> str:
    """A sha256 of :func:`settings`."""
    return hashlib.sha256(yaml.safe_dump(settings(args)).encode()).hexdigest()


def save_args(args: Namespace, path: Path) -> None:
    """Write all flags as YAML that ``-c`` reads."""
    values = {key: value for key, value in vars(args).items() if key not in INVOCATION}
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def _read_run(run: str | Path, parser: ArgumentParser) -> dict[str, Any]:
    path = Path(run) / ARGS
    if not path.is_file():
        raise UserError(f"{run}: there is no run ({path} is missing).")
    return read_yaml(path, parser)


def _may_run_commands(args: Namespace) -> bool:
    """Whether webdataset would start a program to read the data, as for ``pipe:`` and ``s3:``."""
    return args.dataset.startswith("wds/") and ":" in args.data_dir


def _check_schedule(args: Namespace) -> None:
    for key, limit, of in (
        ("warmup_epochs", args.epochs, "longer than the run"),
        ("warmup_lr", args.lr, f"above --lr {args.lr}"),
        ("min_lr", args.lr, f"above --lr {args.lr}"),
    ):
        value = getattr(args, key)
        if value > limit:
            raise UserError(f"{flag_of(key)} {value} is {of}; expected {limit} or less.")


def _check_keywords(args: Namespace) -> None:
    for key, flags in _FLAGS_OF.items():
        for name in getattr(args, key).keys() & set(flags):
            raise UserError(
                f"{flag_of(key)} {name}={getattr(args, key)[name]} is given by a flag; expected "
                f"{flag_of(name)}."
            )
    if args.man_momentum is not None and "momentum" in args.model_kwargs:
        raise UserError(
            f"--man-momentum {args.man_momentum} and --model-kwargs "
            f"momentum={args.model_kwargs['momentum']} say the same thing; expected one of them."
        )


def refuse_changes(args: Namespace) -> None:
    """See that the flags of a run that goes on are those that it was begun with.

    Raises:
        UserError: For one that would make another run of it.
    """
    saved = vars(read_args(args.resume))
    for key, value in vars(args).items():
        if key not in _MAY_CHANGE and value != saved[key]:
            if key == "memory_budget" or value == [BALANCED]:
                raise UserError(
                    "--resume goes on in the blocks that the run began with, planned or not; leave "
                    f"out {flag_of(key)}."
                )
            raise UserError(
                f"--resume goes on as the run began, with {flag_of(key)} {saved[key]}, not "
                f"{value}; start a new run to change that."
            )
