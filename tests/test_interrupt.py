"""Ctrl-C, as a terminal sends it: one sentence that says how to go on, and nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from recipe import environment, flags, train_here, write_images

from man_zoo.runs.checkpoints import list_checkpoints
from man_zoo.runs.folder import load_log

PATIENCE = 300  # seconds, not to wait for ever


@contextmanager
def in_a_terminal(output: Path, *words: str) -> Iterator[psutil.Popen]:
    """``man-zoo WORDS`` in a foreground group of its own; none of its processes is left."""
    with output.open("w") as file:
        command = psutil.Popen(
            [sys.executable, "-m", "man_zoo.commands", *words],
            env=environment(),
            cwd=output.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            # Tests that a shell has put into the background would hand on that it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield command
    finally:
        family = [command, *(command.children(recursive=True) if command.is_running() else ())]
        for process in family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family, timeout=PATIENCE)


def wait_for(done: Callable[[], object], command: psutil.Popen, output: Path) -> None:
    limit = time.monotonic() + PATIENCE
    while not done():
        assert command.poll() is None, output.read_text()
        assert time.monotonic() < limit, output.read_text()
        time.sleep(0.05)


def press_ctrl_c(command: psutil.Popen) -> int:
    """The exit status; pressed again if need be, because Python drops what comes as it forks."""
    for _ in range(10):
        os.killpg(command.pid, signal.SIGINT)
        with suppress(psutil.TimeoutExpired):
            return command.wait(PATIENCE / 10)
    raise AssertionError("Ctrl-C was not heeded")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_images(tmp_path / "data")


def test_a_run_says_how_to_go_on(data, tmp_path) -> None:
    output, run = tmp_path / "output", tmp_path / "run"
    # No readers of their own: Python drops a Ctrl-C that comes as it forks, with a traceback.
    words = flags(data, tmp_path, "--epochs", "10000", "--workers", "0")
    with in_a_terminal(output, "train", *words) as command:
        wait_for(lambda: list_checkpoints(run / "checkpoints"), command, output)
        assert press_ctrl_c(command) == 130
    text = output.read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1] == (
        f"man-zoo train: interrupted; --resume {run} goes on from the last checkpoint."
    )
    assert not list(tmp_path.rglob(".*"))
    done = len(load_log(run))
    train_here("--resume", str(run), "--epochs", str(done + 1), "--workers", "0")
    assert [line["epoch"] for line in load_log(run)] == list(range(1, done + 2))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_sweep_ends_with_its_runs_and_says_how_to_go_on(jobs, data, tmp_path) -> None:
    settings = {"dataset": "folder", "data-dir": str(data), "img-size": 8, "batch-size": 4}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings | {"epochs": 10000}))
    runs = [{"config": "base.yaml", "seeds": [0, 1, 2]}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"results": "out.jsonl", "runs": runs}))
    output = tmp_path / "output"
    begun = [tmp_path / "runs" / f"base-seed{seed}" for seed in range(int(jobs))]
    words = ("sweep", "sweep.yaml", "--output", "runs", "--jobs", jobs)
    with in_a_terminal(output, *words) as command:
        wait_for(
            lambda: all(list_checkpoints(run / "checkpoints") for run in begun), command, output
        )
        trainers = command.children(recursive=True)
        assert len(trainers) == int(jobs)
        assert press_ctrl_c(command) == 130
        _, alive = psutil.wait_procs(trainers, timeout=PATIENCE)
        assert not alive
    text = output.read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1] == (
        "man-zoo sweep: interrupted; the same command goes on where its runs are."
    )
    for run in begun:
        log = run.with_name(f"{run.name}.log").read_text()
        assert "Traceback" not in log
        assert log.splitlines()[-1].endswith("goes on from the last checkpoint.")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        *(run.name for run in begun),
        *(f"{run.name}.log" for run in begun),
    }
