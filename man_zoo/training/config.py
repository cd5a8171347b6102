"""Flags of the training recipe: argparse, with YAML under it (``-c file.yaml``; flags win)."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from pathlib import Path

import yaml
from timm.utils import ParseKwargs

from ..messages import unknown
from .data import add_data_args

DEFAULT_MODEL = "resnet20_man_dgl_k4"


def build_parser() -> ArgumentParser:
    """Every flag of ``recipes/train.py``."""
    parser = ArgumentParser(description="Train a network block by block, or end to end.")
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", help="YAML file with flags; the command line wins")
    add_data_args(parser)

    add = parser.add_argument_group("model").add_argument
    add("--model", default=DEFAULT_MODEL, help="zoo name, or a timm backbone with --method and --k")
    add("--method", help="learning method; the zoo name's by default, e2e for a timm backbone")
    add("--k", type=int, help="number of local blocks; the zoo name's by default")
    add("--cuts", help="'published', 'even', or the names of the units that end a block")
    add("--form", help="form of MAN: release or paper")
    add("--man-momentum", type=float, help="m of MAN's moving average")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE",
        help="further keywords of the model, e.g. head=narrow drop_path_rate=0.1")  # fmt: skip
    add("--pretrained", action="store_true", help="start from the backbone's pretrained weights")

    add = parser.add_argument_group("optimization").add_argument
    add("--opt", default="sgd", help="any optimizer that timm knows; one for each block")
    add("--lr", type=float, default=0.1, help="peak learning rate")
    add("--momentum", type=float, default=0.9, help="momentum of the optimizer")
    add("--weight-decay", type=float, default=1e-4)
    add("--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE")
    add("--filter-bias-and-bn", action=BooleanOptionalAction, default=False,
        help="no weight decay on biases and norms (published: decay on all)")  # fmt: skip
    add("--clip-grad", type=float, help="clip the gradient norm of each block to this")
    add("--grad-accum-steps", type=int, default=1, help="batches to one update")
    add("--sched", default="cosine", help="any schedule that timm knows")
    add("--epochs", type=int, default=10)
    add("--warmup-epochs", type=float, default=0)
    add("--warmup-lr", type=float, default=0.0)
    add("--min-lr", type=float, default=0.0)

    add = parser.add_argument_group("regularization").add_argument
    add("--smoothing", type=float, default=0.0, help="label smoothing, in every loss")
    add("--mixup", type=float, default=0.0, help="mixup alpha")
    add("--cutmix", type=float, default=0.0, help="cutmix alpha")
    add("--mixup-prob", type=float, default=1.0)
    add("--mixup-switch-prob", type=float, default=0.5)
    add("--model-ema", action="store_true", help="validate a moving average of the weights as well")
    add("--model-ema-decay", type=float, default=0.999)

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0)
    add("--mixed-precision", choices=("no", "bf16", "fp16"), help="accelerate's by default")
    add("--channels-last", action=BooleanOptionalAction, default=True)
    add("--cpu-threads", type=int, help="threads of each process on the CPU; its share of the cores "
        "by default, because accelerate launch would leave it one")  # fmt: skip
    add("--compile", action="store_true", help="compile every block with torch.compile")
    add("--output", default="runs", metavar="DIR", help="folder of the run folders")
    add("--experiment", metavar="NAME", help="name of the run folder; time, model and data if left out")
    add("--overwrite", action="store_true", help="replace a run folder of that name")
    add("--resume", metavar="RUN", help="go on from the last checkpoint of a run folder")
    add("--checkpoint-hist", type=int, default=2, help="checkpoints to keep beside the best")
    add("--log-interval", type=int, default=10, help="updates between looks at the losses")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Flags over YAML over defaults; ``--resume`` takes the run's own saved flags.

    Raises:
        ValueError: For a key of the YAML file that is no flag.
        FileNotFoundError: If the file or the run is not there.
    """
    parser = build_parser()
    given = parser.parse_known_args(argv)[0]
    for path in (_saved_args(given.resume), given.config):
        if path:
            parser.set_defaults(**_read_yaml(Path(path), parser))
    return parser.parse_args(argv)


def _saved_args(run: str | None) -> Path | None:
    if run is None:
        return None
    path = Path(run) / "args.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"--resume {run}: there is no run ({path} is missing).")
    return path


def _read_yaml(path: Path, parser: ArgumentParser) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: no such file.")
    values = {key.replace("-", "_"): value for key, value in (yaml.safe_load(path.read_text()) or {}).items()}
    flags = {action.dest for action in parser._actions}
    for key in values:
        if key not in flags:
            raise unknown(f"key in {path}", key, sorted(flags))
    return values


def save_args(args: Namespace, path: Path) -> None:
    """Write all flags as YAML that ``-c`` reads."""
    values = {key: value for key, value in vars(args).items() if key not in ("config", "resume")}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
