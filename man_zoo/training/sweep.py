"""Many runs from one file: each is trained once, resumed if it was stopped, and written down.

    results: ../../docs/results/NAME.jsonl    # beside the sweep file; one line a run
    over: [../configs/cifar10_short.yaml]     # laid over the config of every run
    runs:
      - {config: ../configs/cifar10/resnet32_dgl_k16.yaml, seeds: [0, 1, 2]}
      - {name: dgl_longer, config: ../configs/cifar10/resnet32_dgl_k16.yaml, flags: {epochs: 29}}

Runs are independent processes of the training recipe, so that one that fails takes no other along.
"""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..messages import positive, unknown
from . import config
from .config import Parser
from .errors import UserError, user_errors
from .results import add_result, is_finished, read_results, result_of
from .setup import share_of_cores

_KEYS = ("results", "over", "runs")
_RUN_KEYS = ("name", "config", "seeds", "flags")


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        name: What tables call it, whatever its seed.
        seed: Its seed.
        words: Flags of the training recipe.
        folder: Its run folder.
        epochs: How many it has when it is finished.
    """

    name: str
    seed: int
    words: tuple[str, ...]
    folder: Path
    epochs: int

    @property
    def is_finished(self) -> bool:
        return is_finished(self.folder, self.epochs)


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Flags of ``recipes/sweep.py``; those that it does not know are for every run (``flags``).

    Raises:
        UserError: For flags that are not understood.
    """
    parser = Parser(description="Train a list of runs and collect their results.",
        epilog="Further flags go to every run, e.g. --data-dir DIR.", allow_abbrev=False)  # fmt: skip
    add = parser.add_argument
    add("sweep", type=Path, metavar="FILE", help="YAML: results, over, runs")
    add(
        "--output", type=Path, default=Path("runs"), metavar="DIR", help="folder of the run folders"
    )
    add(
        "--jobs", type=positive, default=1, metavar="N", help="runs at a time; they share the cores"
    )
    args, args.flags = parser.parse_known_args(argv)
    return args


def sweep(args: Namespace, recipe: Path) -> list[dict[str, Any]]:
    """Train what is not trained yet, and write every finished run into the results file.

    Args:
        args: As :func:`parse_args` gives them.
        recipe: The training recipe, ``recipes/train.py``.

    Returns:
        The lines of the results file.

    Raises:
        UserError: For a sweep file or flags that are not understood, before anything is trained;
            at the end, if runs failed.
    """
    results, runs = read_sweep(args.sweep, args.output, args.flags)
    threads = max(1, share_of_cores() // args.jobs)
    failed = []
    with (
        tqdm(total=len(runs), unit="run", desc=args.sweep.stem) as bar,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        futures = {pool.submit(_train, run, recipe, threads): run for run in runs}
        try:
            for future in as_completed(futures):
                run = futures[future]
                if problem := future.result():
                    failed.append(run)
                    bar.write(f"{run.folder.name}: {problem}")
                else:
                    bar.write(_collect(run, results))
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        names = ", ".join(run.folder.name for run in failed)
        raise UserError(f"{len(failed)} of {len(runs)} runs failed ({names}); their logs say why.")
    return read_results(results)


def read_sweep(path: Path, output: Path, flags: Sequence[str]) -> tuple[Path, list[Run]]:
    """The results file and the runs of a sweep file, in its order: every seed of a run in turn.

    Args:
        path: The sweep file; paths in it are relative to it.
        output: Folder of the run folders.
        flags: Flags of the training recipe for every run, over those of the file.

    Raises:
        UserError: For a file that is missing or wrong, in it or in what it names.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with user_errors(yaml.YAMLError, about=f"{path} is not YAML"):
        values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict) or not values.keys() >= {"results", "runs"}:
        raise UserError(f"{path} is no sweep; expected the keys {', '.join(_KEYS)}.")
    _check_keys(path, values, _KEYS)
    over = [str(path.parent / file) for file in values.get("over", [])]
    runs = [
        _run(path.parent, entry, seed, over, output, flags)
        for entry in values["runs"]
        if _check_keys(path, entry, _RUN_KEYS)
        for seed in entry.get("seeds", [0])
    ]
    return Path(os.path.normpath(path.parent / values["results"])), runs


def _check_keys(path: Path, values: dict[str, Any], known: Sequence[str]) -> bool:
    with user_errors(about=str(path)):
        for key in values:
            if key not in known:
                raise unknown("key", key, known)
    return True


def _run(
    base: Path,
    entry: dict[str, Any],
    seed: int,
    over: Sequence[str],
    output: Path,
    flags: Sequence[str],
) -> Run:
    name = entry.get("name") or Path(entry["config"]).stem
    own = [f"--{key}={value}" for key, value in entry.get("flags", {}).items()]
    words = (
        *("-c", str(base / entry["config"]), *over),
        *(*own, *flags),
        *("--seed", str(seed), "--output", str(output), "--experiment", f"{name}-seed{seed}"),
    )
    with user_errors(UserError, about=name):
        args = config.parse_args(words)
    return Run(name, seed, words, output / args.experiment, args.epochs)


def _train(run: Run, recipe: Path, threads: int) -> str:
    """Train a run to its end unless it is there; what went wrong, or nothing."""
    if run.is_finished:
        return ""
    begun = (run.folder / "args.yaml").is_file()
    words = ("--resume", str(run.folder)) if begun else run.words
    command = [sys.executable, str(recipe), *words, "--cpu-threads", str(threads)]
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(f"{run.folder.name}.log")
    with log.open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        return f"failed with status {done.returncode}: {' '.join(last)} ({log})"
    return ""


def _collect(run: Run, results: Path) -> str:
    lines = {(line["name"], line["seed"]): line for line in read_results(results)}
    if (run.name, run.seed) not in lines:
        add_result(results, result_of(run.folder, run.name))
        lines = {(line["name"], line["seed"]): line for line in read_results(results)}
    line = lines[run.name, run.seed]
    return f"{run.folder.name}: top-1 {line['top1']:.2f} %, {line['seconds']:.0f} s"
