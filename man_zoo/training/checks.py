"""Flags that do not go together, as they show once model and data are there."""

from argparse import Namespace

from torch import nn

from ..local_model import LocalModel
from ..micro_batches import need_an_image_each, need_images


def check_flags(args: Namespace, model: LocalModel, batches: int) -> None:
    """Refuse what cannot be trained.

    Args:
        args: Flags of the run.
        model: With its auxiliaries.
        batches: Batches of an epoch.

    Raises:
        ValueError: For flags that do not go together.
    """
    if args.grad_accum_steps > batches:
        raise ValueError(
            f"--grad-accum-steps {args.grad_accum_steps} is more than the {batches} batches of an "
            "epoch; expected at most that many."
        )
    need_an_image_each(args.micro_batches, args.batch_size)
    need_images(model.task.least_images, args.batch_size, args.micro_batches)
    model.check_micro_batches(args.micro_batches)
    if args.batch_size < 2 * args.micro_batches and _averages_vectors(model):
        of_one = f"--micro-batches {args.micro_batches} of " if args.micro_batches > 1 else ""
        raise ValueError(
            f"{of_one}--batch-size {args.batch_size} leaves the auxiliaries' BatchNorm one value a "
            f"feature to average; expected {2 * args.micro_batches} images or more, or "
            "--model-kwargs head_norm=group."
        )
    if args.fsdp and args.compile:
        raise ValueError("--compile does not know of weights that --fsdp shares; drop one of them.")
    if args.fsdp and args.block_parallel > 1:
        raise ValueError("--fsdp and --block-parallel both divide the weights; drop one of them.")
    if args.fsdp:
        model.spec.need_whole_units("--fsdp")


def _averages_vectors(model: LocalModel) -> bool:
    return any(isinstance(layer, nn.BatchNorm1d) for layer in model.auxiliaries.modules())
