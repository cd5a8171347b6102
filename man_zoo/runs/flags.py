"""Every flag of a training run."""

from argparse import ArgumentParser, BooleanOptionalAction

from ..console import Keywords, Parser
from ..console.numbers import (
    below_one,
    fraction,
    memory_size,
    non_negative_number,
    positive,
    positive_number,
    probability,
    seed,
    threads,
)
from ..data import add_data_args
from .folder import folder_name

DEFAULT_MODEL = "resnet20_man_dgl_k4"


def build_parser(program: str | None = None) -> ArgumentParser:
    """The parser of ``man-zoo train`` and ``recipes/train.py``."""
    parser = Parser(
        prog=program,
        description="Train a network block by block, or end to end.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--config", nargs="+", action="extend", default=[], metavar="FILE",
        help="YAML files with flags, or names of configs that come with the library; a file wins "
        "over those before it and over its own 'base: FILE', flags over all")  # fmt: skip
    add_data_args(parser)

    add = parser.add_argument_group("model").add_argument
    add("--model", default=DEFAULT_MODEL, help="zoo name, or a timm backbone with --method and --k")
    add("--method", help="learning method; the zoo name's by default, e2e for a timm backbone")
    add("--k", type=positive, help="number of local blocks; the zoo name's by default")
    add("--decoder", metavar="KIND", help="of segmentation: deeplabv3 (default) or fpn; "
        "of detection: retinanet (default) or retinanet_v2")  # fmt: skip
    add("--cuts", nargs="+", help="'published', 'stages', 'even', 'balanced' (least memory, "
        "planned), or the names of the units that end a block")  # fmt: skip
    add("--memory-budget", type=memory_size, metavar="SIZE", help="e.g. 6GiB, for a training step: "
        "the planner chooses cuts, and what of K, form and recomputation is not given")  # fmt: skip
    add(
        "--calibrate",
        action="store_true",
        help="let what is planned (a memory budget, balanced "
        "cuts, --block-parallel) be fast in seconds, timed on this device, not in arithmetic",
    )
    add("--recompute", nargs="+", help="modes, names and name=mode of units and "
        "auxiliaries whose activations are computed again in backward")  # fmt: skip
    add("--form", help="form of MAN: release or paper")
    add("--man-momentum", type=probability, help="m of MAN's moving average")
    add("--model-kwargs", nargs="*", default={}, action=Keywords, metavar="KEY=VALUE",
        help="further keywords of the model, e.g. head=narrow drop_path_rate=0.1")  # fmt: skip

    add = parser.add_argument_group("fine-tuning").add_argument
    add("--pretrained", action=BooleanOptionalAction, default=False,
        help="start from the weights of --model: a zoo name with weights, a name of timm's, "
        "hf-hub:ORG/NAME or local-dir:FOLDER")  # fmt: skip
    add("--tune", choices=("all", "head"), default="all",
        help="what learns; head, the classifier alone, is a linear probe, end to end")  # fmt: skip
    add("--layer-decay", type=fraction, metavar="X",
        help="factor on the learning rate from each layer to the one below it")  # fmt: skip

    add = parser.add_argument_group("optimization").add_argument
    add("--opt", default="sgd", help="any optimizer that timm knows; one for each block")
    add("--lr", type=non_negative_number, default=0.1, help="peak learning rate")
    add("--momentum", type=below_one, default=0.9, help="momentum of the optimizer")
    add("--weight-decay", type=non_negative_number, default=1e-4)
    add("--opt-kwargs", nargs="*", default={}, action=Keywords, metavar="KEY=VALUE",
        help="further keywords of the optimizer, e.g. eps=1e-6")  # fmt: skip
    add("--filter-bias-and-bn", action=BooleanOptionalAction, default=False,
        help="no weight decay on biases and norms (published: decay on all)")  # fmt: skip
    add("--clip-grad", type=positive_number, help="clip the gradient norm of each block to this")
    add("--grad-accum-steps", type=positive, default=1, help="batches to one update")
    add("--micro-batches", type=positive, default=1, metavar="N", help="slices of a batch that "
        "each block runs one after the other before its update: less memory")  # fmt: skip
    add("--sched", default="cosine", help="any schedule that timm knows, counted in updates")
    add("--sched-kwargs", nargs="*", default={}, action=Keywords, metavar="KEY=VALUE",
        help="further keywords of the schedule, e.g. decay_epochs=30 decay_rate=0.1")  # fmt: skip
    add("--epochs", type=positive, default=15)
    add("--warmup-epochs", type=non_negative_number, default=1)
    add("--warmup-lr", type=non_negative_number, default=0.0)
    add("--min-lr", type=non_negative_number, default=0.0)

    add = parser.add_argument_group("regularization").add_argument
    add("--smoothing", type=probability, default=0.0, help="label smoothing, in every loss")
    add("--mixup", type=non_negative_number, default=0.0, help="mixup alpha")
    add("--cutmix", type=non_negative_number, default=0.0, help="cutmix alpha")
    add("--mixup-prob", type=probability, default=1.0, help="share of batches that are mixed")
    add("--mixup-switch-prob", type=probability, default=0.5,
        help="share of cutmix where both are on")  # fmt: skip
    add(
        "--model-ema",
        action="store_true",
        help="keep, validate and export an average of the weights",
    )
    add("--model-ema-decay", type=below_one, default=0.999)

    add = parser.add_argument_group("run").add_argument
    add("--seed", type=seed, default=0)
    add("--mixed-precision", choices=("no", "bf16", "fp16"), help="accelerate's by default")
    add("--channels-last", action=BooleanOptionalAction, default=True)
    add("--cpu-threads", type=threads, help="threads of each process on the CPU; its share of "
        "the cores by default, because accelerate launch would leave it one")  # fmt: skip
    add("--compile", action="store_true", help="compile every block with torch.compile")
    add("--fsdp", action="store_true", help="share every block's weights, gradients and optimizer "
        "state among the processes, of which any number can go on with the run")  # fmt: skip
    add("--block-parallel", type=positive, default=1, metavar="P", help="processes that "
        "share the blocks, without bubbles; a multiple of P shares the data too")  # fmt: skip
    add("--queue", type=positive, default=1, metavar="N", help="with --block-parallel: batches "
        "a process may be ahead of the next; with MAN, more than 1 is not exact")  # fmt: skip
    add("--process-memory", nargs="+", type=memory_size, metavar="SIZE",
        help="with --block-parallel: memory of every process, or of each")  # fmt: skip
    add("--output", default="runs", metavar="DIR", help="folder of the run folders")
    add(
        "--experiment",
        type=folder_name,
        metavar="NAME",
        help="name of the run folder; time, model and data if left out",
    )
    add("--overwrite", action="store_true", help="replace a run folder of that name")
    add("--resume", metavar="RUN", help="go on from the last checkpoint of a run folder")
    add("--checkpoint-hist", type=positive, default=2, help="checkpoints to keep beside the best")
    add("--val-interval", type=positive, default=1, metavar="N",
        help="epochs between validations; the last epoch always has one")  # fmt: skip
    add("--log-interval", type=positive, default=10, help="updates between looks at the losses")
    add("--log-with", default="tensorboard", metavar="NAME[,NAME]", help="Accelerate's trackers, "
        "e.g. tensorboard,wandb, or none; log.jsonl is written whatever they are")  # fmt: skip
    return parser
