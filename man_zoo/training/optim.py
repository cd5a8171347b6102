"""One optimizer and one schedule for each local block, from timm."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from ..console import user_errors
from ..local_block import LocalBlock
from ..local_model import LocalModel
from ..messages import unknown

# timm's, without plateau: it asks for a metric, and these are counted in updates.
SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")


def create_optimizers(
    args: Namespace, model: LocalModel, blocks: Sequence[LocalBlock]
) -> list[torch.optim.Optimizer]:
    """One optimizer a block, so that it can step right after the block's backward.

    Args:
        args: Flags of the run.
        model: The whole model.
        blocks: Those of its blocks that this process trains.

    Raises:
        ValueError: For an optimizer that timm does not know, or that needs second derivatives.
        UserError: For keywords that it does not take.
    """
    if args.opt not in list_optimizers():
        raise unknown("optimizer", args.opt, list_optimizers())
    if get_optimizer_info(args.opt).second_order:
        raise ValueError(f"--opt {args.opt} needs second derivatives; expected one that does not.")
    with user_errors(TypeError, AssertionError, about=f"--opt {args.opt} with --opt-kwargs"):
        optimizers = [
            create_optimizer_v2(
                parameters,
                opt=args.opt,
                lr=args.lr,
                weight_decay=args.weight_decay,
                momentum=args.momentum,
                filter_bias_and_bn=args.filter_bias_and_bn,
                **args.opt_kwargs,
            )
            for parameters in (_layer_groups(args, model, blocks) if args.layer_decay else blocks)
        ]
    for optimizer in optimizers:
        optimizer.register_load_state_dict_post_hook(_shape_as_parameters)
    return optimizers


def _shape_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Averages that were saved when MAN++'s scale had no dimension."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            averages = isinstance(value, torch.Tensor) and key not in ("step", "mu_product")
            if averages and value.dim() == 0 and parameter.shape == (1,):
                values[key] = value.reshape(1)


def _layer_groups(
    args: Namespace, model: LocalModel, blocks: Sequence[LocalBlock]
) -> list[list[dict[str, Any]]]:
    """Parameter groups of each block with a learning rate for every layer of the backbone.

    Layers are timm's; auxiliaries are new, so they learn at the full rate.
    """
    layers = param_groups_layer_decay(
        model.backbone,
        weight_decay=args.weight_decay,
        no_weight_decay_list=getattr(model.backbone, "no_weight_decay", set)(),
        weight_decay_exclude_1d=args.filter_bias_and_bn,
        layer_decay=args.layer_decay,
    )
    of_backbone = {id(p) for p in model.backbone.parameters()}
    groups = []
    for block in blocks:
        own = {id(p) for p in block.parameters()}
        new = param_groups_weight_decay(
            block,
            weight_decay=args.weight_decay,
            weight_decay_exclude_1d=args.filter_bias_and_bn,
            no_weight_decay_list=block.no_weight_decay(),
        )
        groups.append(
            [
                *_only(own, layers),
                *_only(own - of_backbone, [group | {"lr_scale": 1.0} for group in new]),
            ]
        )
    return groups


def _only(ids: set[int], groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with these parameters alone, and of these such as have any."""
    few = (group | {"params": [p for p in group["params"] if id(p) in ids]} for group in groups)
    return [group for group in few if group["params"]]


def create_schedulers(
    args: Namespace, optimizers: Sequence[torch.optim.Optimizer], updates_per_epoch: int
) -> list[Scheduler]:
    """The same schedule for every block, counted in updates.

    Raises:
        ValueError: For a schedule that timm does not know.
        UserError: For keywords that it does not take.
    """
    if args.sched not in SCHEDULES:
        raise unknown("schedule", args.sched, SCHEDULES)
    kinds = (TypeError, ValueError, ArithmeticError)
    with user_errors(*kinds, about=f"--sched {args.sched} with --sched-kwargs"):
        schedulers = [
            create_scheduler_v2(
                optimizer,
                sched=args.sched,
                num_epochs=args.epochs,
                warmup_epochs=args.warmup_epochs,
                warmup_lr=args.warmup_lr,
                min_lr=args.min_lr,
                step_on_epochs=False,
                updates_per_epoch=updates_per_epoch,
                **args.sched_kwargs,
            )[0]
            for optimizer in optimizers
        ]
        for update in (args.epochs * updates_per_epoch, 0):  # what is wrong may show late
            schedulers[0].step_update(update)
    return schedulers
