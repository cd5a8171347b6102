"""Flags of the training recipe: argparse, with YAML under it (``-c file.yaml``; flags win)."""

import hashlib
import re
import shlex
import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from timm.utils import ParseKwargs

from ..data import add_data_args
from ..messages import unknown
from .errors import UserError, user_errors

DEFAULT_MODEL = "resnet20_man_dgl_k4"
# Flags of one invocation, not of the run: not saved beside it.
_INVOCATION = ("config", "resume", "overwrite")
# What a resumed run may do differently; all else would be another run.
_MAY_CHANGE = {
    *_INVOCATION,
    *("epochs", "output", "experiment", "checkpoint_hist", "log_interval"),
    *("data_dir", "download", "workers", "validation_batch_size", "cpu_threads"),
}
# What says where and how fast a run was made, and not which.
_OF_A_PLACE = {
    *_INVOCATION,
    *("output", "experiment", "checkpoint_hist", "log_interval"),
    *("data_dir", "download", "workers", "validation_batch_size", "cpu_threads"),
}


class Parser(ArgumentParser):
    """An ``ArgumentParser`` whose complaints are sentences for the caller to print."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{value} is too small, expected 1 or more")
    return value


_positive.__name__ = "int"  # argparse's word for it: "invalid int value"


def build_parser() -> ArgumentParser:
    """Every flag of ``recipes/train.py``."""
    parser = Parser(
        description="Train a network block by block, or end to end.", allow_abbrev=False
    )
    add = parser.add_argument
    add("-c", "--config", nargs="+", action="extend", default=[], metavar="FILE",
        help="YAML files with flags; a file wins over those before it and over its own "
        "'base: FILE', flags over all")  # fmt: skip
    add_data_args(parser)

    add = parser.add_argument_group("model").add_argument
    add("--model", default=DEFAULT_MODEL, help="zoo name, or a timm backbone with --method and --k")
    add("--method", help="learning method; the zoo name's by default, e2e for a timm backbone")
    add("--k", type=int, help="number of local blocks; the zoo name's by default")
    add("--cuts", nargs="+", help="'published', 'even', 'balanced' (least memory, planned), or the "
        "names of the units that end a block")  # fmt: skip
    add("--memory-budget", metavar="SIZE", help="e.g. 6GiB, for a training step: the planner "
        "chooses what of K, cuts, form and recomputation is not given")  # fmt: skip
    add("--recompute", nargs="+", help="'units', 'auxiliaries', 'all', or names of units and "
        "auxiliaries whose activations are computed again in backward")  # fmt: skip
    add("--form", help="form of MAN: release or paper")
    add("--man-momentum", type=float, help="m of MAN's moving average")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE",
        help="further keywords of the model, e.g. head=narrow drop_path_rate=0.1")  # fmt: skip

    add = parser.add_argument_group("fine-tuning").add_argument
    add("--pretrained", action=BooleanOptionalAction, default=False,
        help="start from the weights of --model: a zoo name with weights, a name of timm's, "
        "hf-hub:ORG/NAME or local-dir:FOLDER")  # fmt: skip
    add("--tune", choices=("all", "head"), default="all",
        help="what learns; head, the classifier alone, is a linear probe, end to end")  # fmt: skip
    add("--layer-decay", type=float, metavar="X",
        help="factor on the learning rate from each layer to the one below it")  # fmt: skip

    add = parser.add_argument_group("optimization").add_argument
    add("--opt", default="sgd", help="any optimizer that timm knows; one for each block")
    add("--lr", type=float, default=0.1, help="peak learning rate")
    add("--momentum", type=float, default=0.9, help="momentum of the optimizer")
    add("--weight-decay", type=float, default=1e-4)
    add("--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE",
        help="further keywords of the optimizer, e.g. eps=1e-6")  # fmt: skip
    add("--filter-bias-and-bn", action=BooleanOptionalAction, default=False,
        help="no weight decay on biases and norms (published: decay on all)")  # fmt: skip
    add("--clip-grad", type=float, help="clip the gradient norm of each block to this")
    add("--grad-accum-steps", type=_positive, default=1, help="batches to one update")
    add("--sched", default="cosine", help="any schedule that timm knows, counted in updates")
    add("--sched-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE",
        help="further keywords of the schedule, e.g. decay_epochs=30 decay_rate=0.1")  # fmt: skip
    add("--epochs", type=_positive, default=15)
    add("--warmup-epochs", type=float, default=1)
    add("--warmup-lr", type=float, default=0.0)
    add("--min-lr", type=float, default=0.0)

    add = parser.add_argument_group("regularization").add_argument
    add("--smoothing", type=float, default=0.0, help="label smoothing, in every loss")
    add("--mixup", type=float, default=0.0, help="mixup alpha")
    add("--cutmix", type=float, default=0.0, help="cutmix alpha")
    add("--mixup-prob", type=float, default=1.0, help="share of batches that are mixed")
    add("--mixup-switch-prob", type=float, default=0.5, help="share of cutmix where both are on")
    add(
        "--model-ema",
        action="store_true",
        help="keep, validate and export an average of the weights",
    )
    add("--model-ema-decay", type=float, default=0.999)

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0)
    add("--mixed-precision", choices=("no", "bf16", "fp16"), help="accelerate's by default")
    add("--channels-last", action=BooleanOptionalAction, default=True)
    add("--cpu-threads", type=_positive, help="threads of each process on the CPU; its share of "
        "the cores by default, because accelerate launch would leave it one")  # fmt: skip
    add("--compile", action="store_true", help="compile every block with torch.compile")
    add("--output", default="runs", metavar="DIR", help="folder of the run folders")
    add(
        "--experiment",
        metavar="NAME",
        help="name of the run folder; time, model and data if left out",
    )
    add("--overwrite", action="store_true", help="replace a run folder of that name")
    add("--resume", metavar="RUN", help="go on from the last checkpoint of a run folder")
    add("--checkpoint-hist", type=_positive, default=2, help="checkpoints to keep beside the best")
    add("--val-interval", type=_positive, default=1, metavar="N",
        help="epochs between validations; the last epoch always has one")  # fmt: skip
    add("--log-interval", type=_positive, default=10, help="updates between looks at the losses")
    return parser


def parse_args(argv: Sequence[str] | None = None, **defaults: Any) -> Namespace:
    """Flags over YAML over defaults; ``--resume`` takes the run's own saved flags.

    Args:
        argv: The command line's words; those of this process by default.
        defaults: A recipe's own, in place of the parser's.

    Raises:
        UserError: For flags that are not understood, here or in a YAML file, for a file or run
            that is not there, and for flags that a resumed run cannot change.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    parser.set_defaults(**defaults)
    given = parser.parse_args(argv)
    saved = _read_run(given.resume, parser) if given.resume else []
    config = [word for path in given.config for word in _read_yaml(Path(path), parser)]
    args = parser.parse_args([*saved, *config, *argv])
    if args.resume:
        _refuse_changes(vars(parser.parse_args(saved)), vars(args))
    return args


def read_args(run: Path) -> Namespace:
    """The flags of a run.

    Raises:
        UserError: If there is no run.
    """
    parser = build_parser()
    return parser.parse_args(_read_run(run, parser))


def settings(args: Namespace) -> dict[str, Any]:
    """The flags that make a run what it is, the same wherever it is made."""
    return {key: value for key, value in vars(args).items() if key not in _OF_A_PLACE}


def command_line(args: Namespace) -> str:
    """Flags that make the same run again elsewhere: those that differ from the defaults."""
    parser = build_parser()
    actions = {action.dest: action for action in parser._actions}
    words = [
        word
        for key, value in settings(args).items()
        if value != parser.get_default(key)
        for word in _words(actions[key], value)
    ]
    return shlex.join(words)


def config_hash(args: Namespace) -> str:
    """A sha256 of :func:`settings`."""
    return hashlib.sha256(yaml.safe_dump(settings(args)).encode()).hexdigest()


def save_args(args: Namespace, path: Path) -> None:
    """Write all flags as YAML that ``-c`` reads."""
    values = {key: value for key, value in vars(args).items() if key not in _INVOCATION}
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(yaml.safe_dump(values, sort_keys=False))
    unfinished.replace(path)


def _read_run(run: str | Path, parser: ArgumentParser) -> list[str]:
    path = Path(run) / "args.yaml"
    if not path.is_file():
        raise UserError(f"{run}: there is no run ({path} is missing).")
    return _read_yaml(path, parser)


def _refuse_changes(saved: dict[str, Any], args: dict[str, Any]) -> None:
    for key, value in args.items():
        if key not in _MAY_CHANGE and value != saved[key]:
            raise UserError(
                f"--resume goes on as the run began, with {_flag(key)} {saved[key]}, not {value}; "
                "start a new run to change that."
            )


# YAML as a command line: argparse then checks names, types and choices, as it does for flags.


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: ``on``, ``off`` and ``no`` are words here (``in-memory: off``)."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))


def _read_yaml(path: Path, parser: ArgumentParser, above: tuple[Path, ...] = ()) -> list[str]:
    if path.resolve() in above:
        raise UserError(f"{path} is a base of itself.")
    if not path.is_file():
        raise UserError(f"--config {path}: no such file.")
    values = load_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} is no list of flags; expected lines such as 'lr: 0.1'.")
    base = values.pop("base", None)
    below = []
    if base is not None:
        below = _read_yaml(path.parent / str(base), parser, (*above, path.resolve()))
    with user_errors(UserError, ValueError, about=str(path)):
        words = [*below, *words_of(values)]
        parser.parse_args(words)
    return words


def load_yaml(path: Path) -> Any:
    """What a YAML file holds; ``on``, ``off`` and ``no`` are words in it.

    Raises:
        UserError: If it is not YAML.
    """
    with user_errors(yaml.YAMLError, about=f"{path} is not YAML"):
        return yaml.load(path.read_text(), _Loader)


def words_of(values: dict[str, Any]) -> list[str]:
    """Flags and their values, as YAML has them, as words of a command line.

    Raises:
        ValueError: For a flag that there is not, or a value that is none of it.
    """
    actions = {action.dest: action for action in build_parser()._actions}
    words = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise unknown("key", key, sorted(actions))
        words += _words(actions[name], value)
    return words


def _words(action: Action, value: Any) -> list[str]:
    """One YAML value as it would stand on the command line."""
    flag = _flag(action.dest)
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{flag} is true or false, not {value!r}.")
        if isinstance(action, BooleanOptionalAction):
            return [flag if value else flag.replace("--", "--no-", 1)]
        return [flag] if value else []
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict):
            raise ValueError(f"{flag} is a mapping such as {{key: value}}, not {value!r}.")
        return [flag, *(f"{key}={item}" for key, item in value.items())]
    if action.nargs is None:
        return [f"{flag}={value}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def _flag(dest: str) -> str:
    return "--" + dest.replace("_", "-")
