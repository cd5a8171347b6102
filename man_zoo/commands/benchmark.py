"""``man-zoo benchmark``: time, memory and arithmetic of zoo models beside end to end."""

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence

from ..benchmark import benchmark, render
from ..benchmark.candidates import keyword
from ..benchmark.processes import compare_processes, render_processes
from ..console import Parser, exit_status, output_file, write_json
from ..console.numbers import image_size, positive, threads


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program,
        description="Compare training steps with end to end, in one run.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="zoo name, and keywords of its own if you like, "
        "e.g. resnet32_man_dgl_k16:form=release:momentum=0.99")  # fmt: skip
    add("--model-kwargs", nargs="*", default=[], type=keyword, metavar="KEY=VALUE",
        help="keywords of all models; those of local methods do not reach end to end")  # fmt: skip
    add("--img-size", type=image_size, metavar="PIXELS",
        help="or HEIGHTxWIDTH; the model's own by default")  # fmt: skip
    add("--batch-size", type=positive, default=256, metavar="N")
    add("--memory-batch-size", type=positive, metavar="N",
        help="batch for memory and arithmetic; --batch-size by default")  # fmt: skip
    add("--micro-batches", type=positive, default=1, metavar="N",
        help="slices of a batch that each block runs one after the other: of the models, and of "
        "checkpointed end to end in a line of its own")  # fmt: skip
    add("--time", action=BooleanOptionalAction, default=True, help="whether to time steps")
    add("--steps", type=positive, default=7, metavar="N", help="timed steps of each model")
    add("--compile", action="store_true", help="time every model compiled as well")
    add("--block-parallel", type=positive, metavar="P", help="the model on P processes, data "
        "parallel and block-parallel, beside one process; --steps rounds")  # fmt: skip
    add("--channels-last", action=BooleanOptionalAction, default=True)
    add("--mixed-precision", choices=("no", "bf16"), default="no")
    add("--opt", default="sgd", help="timm's name of the optimizer")
    add("--grad-accum-steps", type=positive, default=1, metavar="N", help="batches to one update; "
        "a step is all of them")  # fmt: skip
    add("--model-ema", action="store_true", help="keep an average of the weights")
    add("--device", help="cpu, or the accelerator, e.g. cuda:1; the accelerator by default. With "
        "--no-time: whose memory, cuda by default, be there one or not")  # fmt: skip
    add("--cpu-threads", type=threads, metavar="N", help="on the CPU; all cores by default")
    add("--json", type=output_file, metavar="FILE",
        help="write the figures, each timed step among them")  # fmt: skip
    return parser


def run(args: Namespace) -> None:
    """Measure, print the table, write the figures.

    Raises:
        UserError: As :func:`man_zoo.benchmark.benchmark`.
    """
    if args.block_parallel:
        report = compare_processes(args)
        print(render_processes(report))
    else:
        report = benchmark(args)
        print(render(report))
    if args.json:
        write_json(args.json, report)


def main(argv: Sequence[str] | None = None, program: str = "man-zoo benchmark") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
