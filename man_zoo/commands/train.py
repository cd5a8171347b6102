"""``man-zoo train``: train a network block by block, or end to end, and export its backbone.

On several processes or devices: ``accelerate launch -m man_zoo.commands.train [flags]``.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import exit_status, noted, write_json
from ..hub.export import export_run, usage
from ..parallel.launcher import LauncherWatch
from ..parallel.termination import Termination
from ..runs.config import parse_args
from ..runs.folder import ARGS, EXPORT, EXPORT_EMA, SUMMARY
from ..training.report import final_report
from ..training.setup import open_run
from ..training.train import train


def train_and_export(args: Namespace) -> dict[str, Any]:
    """Train to the end, export the backbone, say what has come of it; the run's summary.

    Raises:
        UserError: As :func:`~man_zoo.training.setup.open_run` and
            :func:`~man_zoo.training.train.train`.
        Stopped: After SIGTERM, and a checkpoint.
    """
    launcher = LauncherWatch("start it again")  # before the processes wait to meet
    with (
        open_run(args) as run,
        noted(_go_on(run), once=run / ARGS),
        Termination(f"go on with --resume {run}") as termination,
    ):
        launcher.go_on, launcher.is_ending = termination.go_on, lambda: termination.asked
        finished = train(args, run, termination)
        if finished.is_main:
            exported = export_run(run, run / EXPORT, force=True, summary=finished.summary)
            if args.model_ema:
                export_run(run, run / EXPORT_EMA, ema=True, force=True)
            write_json(run / SUMMARY, finished.summary)
            print(final_report(finished.model, finished.summary, run))
            print(f"\nload it with timm:\n\n{usage(exported)}")
    return finished.summary


def _go_on(run: Path) -> str:
    return f"--resume {run} goes on from the last checkpoint."


def main(argv: Sequence[str] | None = None, program: str = "man-zoo train") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: train_and_export(parse_args(argv, program)))


if __name__ == "__main__":
    sys.exit(main())
