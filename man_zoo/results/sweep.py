"""Many runs from one file: each is trained once, resumed if it was stopped, and written down.

    results: ../../docs/results/NAME.jsonl    # one line a run; paths are relative to this file
    over: [../configs/cifar10_short.yaml]     # laid over the config of every run
    runs:
      - {config: ../configs/cifar10/resnet32_dgl_k16.yaml, seeds: [0, 1, 2]}
      - {name: dgl_longer, config: ../configs/cifar10/resnet32_dgl_k16.yaml, flags: {epochs: 29}}

Runs are processes of the training recipe, so that one that fails takes no other along.
"""

import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..console import UserError, noted, user_errors
from ..messages import unknown
from ..parallel.processes import share_of_cores
from ..runs.config import asks_for_a_plan, parse_args, read_args, settings
from ..runs.folder import ARGS, SUMMARY
from ..runs.recipes import PACKAGE
from ..runs.yaml_flags import load_yaml, words_of
from ..spec import CLASSIFICATION
from ..tasks import TASKS
from ..training.report import percentages
from .groups import Groups
from .processes import Processes
from .records import add_result, read_results, result_of

TRAIN = "man_zoo.commands.train"  # as a process of its own
_SWEEP: dict[str, type] = {"results": str, "over": list, "runs": list}
_RUN: dict[str, type] = {"name": str, "config": str, "seeds": list, "flags": dict}
_KINDS: dict[type, str] = {str: "text", list: "list", dict: "mapping"}
# What training writes into a run's flags: what a planner chose, and what they left open.
_PLANNED = {"memory_budget", "k", "cuts", "recompute"}
_OPEN = ("form", "mixed_precision")


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        name: What tables call it, whatever its seed.
        seed: Its seed.
        words: Flags of the training recipe.
        flags: Those of them that the whole sweep has; a run that goes on takes them as well.
        folder: Its run folder.
    """

    name: str
    seed: int
    words: tuple[str, ...]
    flags: tuple[str, ...]
    folder: Path

    @property
    def is_finished(self) -> bool:
        """The summary is the last thing that a run writes of itself."""
        return (self.folder / SUMMARY).is_file()


def sweep(args: Namespace) -> list[dict[str, Any]]:
    """Train what is not trained yet, and write every finished run into the results file.

    Args:
        args: Flags of ``man-zoo sweep``.

    Returns:
        The lines of the results file.

    Raises:
        UserError: For a sweep file or flags that are not understood, before anything is trained;
            at the end, if runs failed.
    """
    results, runs = read_sweep(args.sweep, args.output, args.flags)
    there = Groups(read_results(results))  # before hours are spent on what could not be put there
    if args.missing:
        runs = [run for run in runs if not there.has(run.name, run.seed)]
    with user_errors(about="--launch"):
        command = [*shlex.split(args.launch), "-m", TRAIN]
    if args.jobs > 1:
        command += ["--cpu-threads", str(max(1, share_of_cores() // args.jobs))]
    failed: list[str] = []
    processes = Processes()
    with (
        noted("the same command goes on where its runs are."),
        tqdm(total=len(runs), unit="run", desc=args.sweep.stem) as bar,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        futures = {pool.submit(train_run, run, command, processes): run for run in runs}
        try:
            for future in as_completed(futures):
                run = futures[future]
                try:
                    line = write_down(run, results, anew=future.result())
                    task = TASKS[line["settings"].get("task", CLASSIFICATION)]
                    bar.write(f"{run.folder.name}: {percentages(task, line)[0]}")
                except UserError as error:
                    failed.append(run.folder.name)
                    bar.write(f"{run.folder.name}: {error}")
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.interrupt()  # which the pool then waits for
            raise
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.")
    return read_results(results)


def read_sweep(path: Path, output: Path, flags: Sequence[str]) -> tuple[Path, list[Run]]:
    """The results file and the runs of a sweep file, in its order: every seed of a run in turn.

    Args:
        path: The sweep file; paths in it are relative to it.
        output: Folder of the run folders.
        flags: Flags of the training recipe for every run, over those of the file.

    Raises:
        UserError: For a file that is missing or wrong, in it or in what it names, and for a run
            folder that is there from a run with other flags.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    values = load_yaml(path)
    with user_errors(about=str(path)):
        _check(values, _SWEEP, needed=("results", "runs"))
        for entry in values["runs"]:
            _check(entry, _RUN, needed=("config",))
    over = [str(path.parent / str(file)) for file in values.get("over", [])]
    runs = [
        _read_run(path.parent, entry, seed, over, output, flags)
        for entry in values["runs"]
        for seed in entry.get("seeds", [0])
    ]
    folders = [run.folder for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{path}: two runs would be {folder}; expected a name: of their own.")
    return _results_file(path, values["results"], output), runs


def _results_file(path: Path, name: str, output: Path) -> Path:
    """Where a sweep file says, but no installed package is written into."""
    results = Path(os.path.normpath(path.parent / name))
    return output / results.name if PACKAGE in results.parents else results


def _check(values: Any, kinds: dict[str, type], needed: Sequence[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"expected the keys {', '.join(kinds)}, got {values!r}.")
    for key, value in values.items():
        if key not in kinds:
            raise unknown("key", key, list(kinds))
        if not isinstance(value, kinds[key]):
            raise ValueError(f"{key} is a {_KINDS[kinds[key]]}, not {value!r}.")
    for key in needed:
        if key not in values:
            raise ValueError(f"the key {key} is missing in {values!r}.")


def _read_run(
    base: Path,
    entry: dict[str, Any],
    seed: int,
    over: Sequence[str],
    output: Path,
    flags: Sequence[str],
) -> Run:
    name = entry.get("name", Path(entry["config"]).stem)
    experiment = f"{name}-seed{seed}"
    with user_errors(UserError, ValueError, about=name):
        words = (
            *("-c", str(base / entry["config"]), *over, *words_of(entry.get("flags", {}))),
            *(*flags, "--seed", str(seed), "--output", str(output), "--experiment", experiment),
        )
        run = Run(name, seed, words, tuple(flags), output / experiment)
        wanted = parse_args(words)
        if _is_begun(run) and _differ(read_args(run.folder), wanted):
            raise UserError(
                f"{run.folder} is a run with other flags; remove it, or take another --output."
            )
    return run


def _differ(begun: Namespace, wanted: Namespace) -> bool:
    """Whether settings differ, but for those that a run may have chosen by itself."""
    chosen = {key for key in _OPEN if getattr(wanted, key) is None}
    if asks_for_a_plan(wanted):
        chosen |= _PLANNED
    return any(
        value != getattr(begun, key) for key, value in settings(wanted).items() if key not in chosen
    )


def _is_begun(run: Run) -> bool:
    return (run.folder / ARGS).is_file()


def train_run(run: Run, command: Sequence[str], processes: Processes) -> bool:
    """Train a run to its end; whether there was anything to train.

    Args:
        run: The run; its output goes to a log file beside its folder.
        command: What starts the training recipe.
        processes: The sweep's.

    Raises:
        UserError: If it cannot be started, or fails: with the last line that it printed.
    """
    if run.is_finished:
        return False
    words = ("--resume", str(run.folder), *run.flags) if _is_begun(run) else run.words
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(f"{run.folder.name}.log")
    with user_errors(OSError):
        status = processes.run([*command, *words], log)
    if status:
        last = (log.read_text().strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"failed with status {status}: {last} ({log} has the rest)")
    return True


def write_down(run: Run, results: Path, *, anew: bool) -> dict[str, Any]:
    """The line of a finished run, written into the results file if it is not there or ``anew``."""
    lines = {(line["name"], line["seed"]): line for line in read_results(results)}
    if anew or (run.name, run.seed) not in lines:
        line = result_of(run.folder, run.name)
        add_result(results, line)
        return line
    return lines[run.name, run.seed]
