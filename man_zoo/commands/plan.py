"""``man-zoo plan``: what a split costs, the best for a budget or for several processes."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch

from ..benchmark.trial import trial
from ..console import Keywords, Parser, exit_status, output_file, user_errors
from ..console.numbers import (
    height_width,
    image_size,
    memory_size,
    memory_sizes,
    positive,
    positive_or_auto,
)
from ..localize import create_backbone
from ..messages import unknown
from ..micro_batches import GHOST, need_an_image_each
from ..planner import (
    AUTO,
    BALANCED,
    Plan,
    Planner,
    Setting,
    assign,
    budget_bytes,
    choose_micro_batches,
    largest,
    measuring,
)
from ..planner.compare import compare, describe, draw, front, render, verdict
from ..planner.largest import IMAGE
from ..planner.largest import render as render_largest
from ..planner.outlook import outlook
from ..planner.setting import LOW_PRECISION
from ..spec import CLASSIFICATION, END_TO_END, check_method, is_zoo_name, parse_name
from ..split import published_cuts
from ..target import DEVICES
from ..tasks import TASKS, Task, create_task


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program,
        description="Memory and arithmetic of a split, and the best cuts for K or for a memory "
        "budget or several processes. Nothing is allocated: any machine can plan for any other.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="zoo name, or a timm backbone with --method and --k or --budget")
    add("--method", help="learning method; the zoo name's by default, man_dgl for a backbone")
    add("--k", type=positive, help="number of local blocks")
    add("--budget", type=memory_size, metavar="SIZE",
        help="memory, e.g. 6GiB: plan the fastest split within it")  # fmt: skip
    add("--largest", metavar="WHAT",
        help="'batch' or 'image': the largest within --budget, for each way to train")  # fmt: skip
    add("--processes", type=positive, metavar="P",
        help="blocks on P processes: which has which, and the speed-up to expect")  # fmt: skip
    add("--memory", type=memory_sizes, default=(), metavar="SIZE[,SIZE...]",
        help="with --processes: each one's limit, or one for all, e.g. 24GiB,12GiB")  # fmt: skip
    add("--cuts", default=BALANCED, help="'balanced' (least memory, or the slowest process "
        "fastest), 'published', 'stages', 'even' or units")  # fmt: skip
    add("--recompute", help="modes, parts and part=mode; a budget's plan chooses")
    add("--model-kwargs", nargs="*", default={}, action=Keywords, metavar="KEY=VALUE",
        help="further keywords of the method, e.g. form=release head=narrow")  # fmt: skip
    add("--batch-size", type=positive, default=128, metavar="N")
    add("--img-size", type=image_size, metavar="PIXELS",
        help="or HEIGHTxWIDTH; the model's own by default")  # fmt: skip
    add("--task", choices=tuple(TASKS), default=CLASSIFICATION, help="what the network is for")
    add("--num-classes", type=positive, metavar="N",
        help="of a dense task; by default as many as its published results are for")  # fmt: skip
    add("--decoder", help="of a dense task, e.g. deeplabv3 or fpn")
    add("--output-stride", type=int, choices=(8, 16, 32), help="of the backbone's last map, where "
        "the family lets one choose")  # fmt: skip
    add("--opt", default="sgd", help="timm's name of the optimizer")
    add("--precision", choices=("no", *LOW_PRECISION), default="no")
    add("--micro-batches", type=positive_or_auto, default=1, metavar="N",
        help="slices of a batch that each block runs one after the other; 'auto' chooses 1, 2, 4 "
        "or 8 for a budget, where that is the same training")  # fmt: skip
    add(
        "--calibrate",
        action="store_true",
        help="time the pieces on the device at hand, kept in "
        "$MAN_ZOO_CACHE or ~/.cache/torch/man_zoo: the fastest in seconds, not in arithmetic",
    )
    add(
        "--device", choices=DEVICES, default="cuda", help="whose autocast, attention and optimizers"
    )
    add("--grad-accum-steps", type=positive, default=1, metavar="N", help="batches to one update; "
        "with more than one the gradients of all blocks live on")  # fmt: skip
    add("--model-ema", action="store_true", help="keep an average of the weights")
    add("--channels-last", action="store_true", help="weights and images in channels-last order")
    add("--compare", action="store_true", help="beside end to end, checkpointing, other cuts")
    add("--picture", type=output_file, metavar="FILE",
        help="with --compare: draw memory and arithmetic")  # fmt: skip
    return parser


def run(args: Namespace) -> None:
    """Plan, and print what was found.

    Raises:
        UserError: For an unknown model or method, an impossible K, a budget that cannot be met.
    """
    lines = []
    with user_errors(), measuring() as progress:
        check(args)
        budget = budget_bytes(args.budget) if args.budget else None
        planner, k = create_planner(args, progress)
        if args.largest:
            assert budget is not None
            found = largest(planner, args.largest, budget, k)
            print(render_largest(found, args.largest))
            return
        if args.processes:
            plan, *expected = on_processes(planner, args, k)
        else:
            planner, plan = choose(planner, args, k, budget)
            expected = [] if planner.method == END_TO_END else [verdict(planner, plan)]
        lines += [describe(plan, model_keywords(args)), *expected]
        if args.calibrate:
            lines.append(trial(planner, plan))
        if plan.setting.micro_batches > 1 and not planner.divisible:
            lines.append(GHOST)
        if args.compare:
            plans = compare(planner, k or plan.spec.k, budget)
            lines += ["", render(plans)]
            if args.picture:
                draw(planner, front(planner), plans, args.picture)
    print(*lines, sep="\n")


def check(args: Namespace) -> None:
    """Raises ``ValueError`` for flags that contradict each other."""
    if args.picture and not args.compare:
        raise ValueError("--picture draws what --compare finds; add --compare.")
    if args.memory and not args.processes:
        raise ValueError("--memory is the limit of each of several --processes; or use --budget.")
    if args.largest and not args.budget:
        raise ValueError("--largest needs --budget, the memory to fit into, e.g. 8GiB.")
    if args.largest and (args.cuts != BALANCED or args.recompute or args.compare):
        raise ValueError(
            "--largest plans cuts and recomputation, and compares; drop --cuts, "
            "--recompute and --compare."
        )
    if args.largest and args.micro_batches == AUTO:
        raise ValueError("--largest takes a number of --micro-batches; leave out auto.")
    if args.largest == IMAGE and args.calibrate:
        raise ValueError("--calibrate times one image size; leave it out of --largest image.")
    if args.budget and args.cuts != BALANCED:
        raise ValueError("--budget chooses the cuts; leave out --cuts, or the budget.")
    if args.budget and args.processes:
        raise ValueError("--budget is for one process; --memory limits each of --processes.")
    if args.micro_batches == AUTO and not args.budget:
        raise ValueError("--micro-batches auto chooses for a --budget; name one, or a number.")
    if args.micro_batches != AUTO:
        need_an_image_each(args.micro_batches, args.batch_size)


def create_planner(args: Namespace, progress: Callable[[], object]) -> tuple[Planner, int | None]:
    """The planner for the flags, and K if they name one.

    Raises:
        ValueError: For an unknown model or method, or a K that nothing says.
    """
    backbone, method, k = args.model, args.method or "man_dgl", args.k
    if is_zoo_name(args.model):
        backbone, named, named_k = parse_name(args.model)
        method, k = args.method or named, args.k or named_k
    if not timm.is_model(backbone):
        raise unknown("model", backbone, timm.list_models())
    check_method(method)
    if method == END_TO_END and (not args.budget or args.largest or args.compare):
        raise ValueError(
            "e2e has nothing to plan but what to recompute for a --budget; --compare and --largest "
            "show it beside every method."
        )
    if k is None and args.task != CLASSIFICATION:
        k = min((k for name, k in published_cuts(args.task) if name == backbone), default=None)
    if k is None and not args.budget and not (args.processes and args.cuts == BALANCED):
        raise ValueError(f"{backbone} needs --k, the number of local blocks, or --budget.")
    cfg = timm.models.resolve_pretrained_cfg(backbone)
    channels, *size = cfg.input_size
    keywords: dict[str, Any] = {}
    if args.img_size:
        size = list(height_width(args.img_size))
        keywords = {"img_size": size} if cfg.fixed_input_size else {}
    if args.output_stride:
        keywords["output_stride"] = args.output_stride
    task = task_of(args)
    if task is not None:
        keywords["num_classes"] = 0
    about = f"--img-size {args.img_size}"
    device = "cpu" if args.calibrate else "meta"
    with torch.device(device), user_errors(AssertionError, RuntimeError, about=about):
        model = create_backbone(backbone, method, **keywords)
    count = 1 if args.micro_batches == AUTO else args.micro_batches
    # As the training recipe has it: the order decides over time.
    setting = Setting(
        args.batch_size,
        args.opt,
        args.precision,
        args.device,
        grad_accum_steps=args.grad_accum_steps,
        model_ema=args.model_ema,
        channels_last=args.channels_last or args.calibrate,
        micro_batches=count,
    )
    name = timm.models.get_arch_name(backbone)
    shape = (channels, size[0], size[1])
    keywords = args.model_kwargs
    planner = Planner(
        model,
        name,
        method,
        keywords,
        shape,
        setting,
        progress=progress,
        calibrate=args.calibrate,
        task=task,
    )
    return planner, k


def task_of(args: Namespace) -> Task | None:
    """The dense task that the flags name; none for classification.

    Raises:
        ValueError: For a decoder that it does not have, and for flags that are a dense task's.
    """
    if args.task == CLASSIFICATION:
        if args.num_classes or args.decoder:
            raise ValueError("--num-classes and --decoder are a dense task's; name it by --task.")
        return None
    return create_task(args.task, args.num_classes or TASKS[args.task].usual_classes, args.decoder)


def model_keywords(args: Namespace) -> dict[str, Any]:
    """What ``localize`` takes for the model that the flags name, beside the plan."""
    task = task_of(args)
    named = {} if task is None else {"task": task.name, "num_classes": task.num_classes}
    if args.img_size:
        named["img_size"] = height_width(args.img_size)
    flags = ("decoder", "output_stride")
    named |= {flag: getattr(args, flag) for flag in flags if getattr(args, flag)}
    return args.model_kwargs | named


def choose(
    planner: Planner, args: Namespace, k: int | None, budget: int | None
) -> tuple[Planner, Plan]:
    """The plan that the flags ask for, and the planner with its micro-batches.

    Raises:
        ValueError: For an impossible K or cut, a budget that cannot be met.
    """
    if budget is not None:
        if args.micro_batches == AUTO:
            return choose_micro_batches(planner, budget, k, args.recompute)
        return planner, planner.within(budget, k, args.recompute)
    assert k is not None
    if args.cuts == BALANCED:
        return planner, planner.balanced(k, args.recompute)
    return planner, planner.cuts(k, args.cuts, args.recompute)


def on_processes(planner: Planner, args: Namespace, k: int | None) -> tuple[Plan, str]:
    """The plan for several processes, and what to expect of it.

    Raises:
        ValueError: For an impossible K or cut, more processes than blocks, limits that cannot be
            met, overlap.
    """
    limits = [budget_bytes(size) for size in args.memory]
    if args.cuts == BALANCED:
        plan = planner.spread(args.processes, k, limits, args.recompute)
    else:
        assert k is not None
        plan = planner.cuts(k, args.cuts, args.recompute)
    plan.spec.need_whole_units("block parallelism")
    placement = assign(plan.cost.blocks, args.processes, limits)
    return plan, f"\n{outlook(plan, placement, limits)}"


def main(argv: Sequence[str] | None = None, program: str = "man-zoo plan") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
