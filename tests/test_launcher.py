"""A trainer ends with what started it, one process with the others, and says how to go on."""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import psutil
import pytest
import yaml
from recipe import ROOT, environment, flags, train_here, write_images

from man_zoo.ancestors import SWEEP
from man_zoo.parallel.launcher import LAUNCHERS, LauncherWatch
from man_zoo.runs.checkpoints import epoch_of, find_checkpoint

TRAIN = str(ROOT / "recipes" / "train.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
# Seconds, far above what is needed: not to wait for ever, and no measure of speed.
PATIENCE = 300
LONG = ("--epochs", "10000", "--val-interval", "10000")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_images(tmp_path / "data")


@contextmanager
def started(
    output: Path, *words: str, ready: Callable[[psutil.Popen], object] | None = None
) -> Iterator[psutil.Popen]:
    """``python WORDS`` as a process whose output goes to ``output``; no child of it is left.

    It is ready when it has a checkpoint, unless ``ready`` says otherwise.
    """
    # pathlib's glob fails where a folder is renamed as it looks.
    ready = ready or (lambda _: glob(f"{output.parent}/**/checkpoints/epoch-*", recursive=True))
    with output.open("wb") as file:
        process = psutil.Popen(
            [sys.executable, *words], env=environment(), cwd=ROOT, stdout=file, stderr=file
        )
    family = {process}
    try:
        wait_for(lambda: ready(process), process, output)
        family |= {*process.children(recursive=True)}
        yield process
    finally:
        if process.is_running():
            family |= {*process.children(recursive=True)}
        for member in family:
            if member.is_running():
                member.kill()
        psutil.wait_procs(family, timeout=PATIENCE)


def wait_for(done: Callable[[], object], process: psutil.Popen, output: Path) -> None:
    limit = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < limit, output.read_text()
        time.sleep(0.1)


def trainers(process: psutil.Popen) -> list[psutil.Process]:
    """The processes that train, in order of their ranks."""
    family = [process, *process.children(recursive=True)]
    ranks = {member: member.environ().get("LOCAL_RANK", "0") for member in family}
    training = [member for member in family if not member.children()]
    return sorted(training, key=ranks.__getitem__)


def assert_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert not alive


def sentences(output: Path) -> list[str]:
    return [line for line in output.read_text().splitlines() if line.startswith("train.py: ")]


@pytest.mark.slow
def test_the_others_end_in_one_sentence_when_one_is_killed(data, tmp_path):
    output = tmp_path / "output"
    with started(output, *TORCHRUN, TRAIN, *flags(data, tmp_path, *LONG)) as launcher:
        workers = trainers(launcher)
        workers[0].kill()  # the one that speaks for all as long as it lives
        assert_end([launcher, *workers])
    assert launcher.returncode
    [sentence] = sentences(output)
    assert sentence.endswith(f"; go on with --resume {tmp_path / 'run'}.")
    assert "[rank" not in output.read_text()  # torch's name for a worker's traceback


@pytest.mark.slow
def test_sigterm_ends_a_process_that_waits_for_another(data, tmp_path, monkeypatch):
    """A collective keeps the main thread away from Python: for ever, if the other is stopped."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
    output = tmp_path / "output"
    with started(output, *TORCHRUN, TRAIN, *flags(data, tmp_path, *LONG)) as launcher:
        waiting, stopped = trainers(launcher)
        stopped.suspend()
        time.sleep(2)  # to let the other come to wait; too short would be an easier test
        waiting.terminate()
        assert_end([waiting])
        stopped.kill()
        assert_end([launcher, stopped])
    [sentence] = sentences(output)
    assert "ended by SIGTERM" in sentence


@pytest.mark.slow
@pytest.mark.parametrize("launch", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_trainer_ends_with_its_launcher(launch, data, tmp_path):
    output = tmp_path / "output"
    with started(output, *launch, TRAIN, *flags(data, tmp_path, *LONG)) as launcher:
        workers = trainers(launcher)
        assert launcher not in workers
        launcher.kill()
        assert_end(workers)
    [sentence] = sentences(output)
    assert sentence.endswith(f"has gone; go on with --resume {tmp_path / 'run'}.")


def trainers_load_torch(launcher: psutil.Popen) -> bool:
    """Whether all have started, and are seconds away from training."""
    try:
        trainers = [child for child in launcher.children() if TRAIN in child.cmdline()]
        files = [{Path(file.path).stem for file in it.memory_maps()} for it in trainers]
    except psutil.Error:  # what the launcher has started for something else has ended
        return False
    return files != [] and all("libtorch_cpu" in names for names in files)


@pytest.mark.slow
@pytest.mark.parametrize("launch", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_trainer_ends_with_a_launcher_that_goes_while_it_starts(launch, data, tmp_path):
    output = tmp_path / "output"
    words = (*launch, TRAIN, *flags(data, tmp_path, *LONG))
    with started(output, *words, ready=trainers_load_torch) as launcher:
        workers = launcher.children()
        launcher.kill()
        assert_end(workers)
    [sentence] = sentences(output)
    assert sentence.endswith("that started this process has gone; start it again.")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_trainer_ends_with_the_sweep_above_its_launcher_and_goes_on(data, tmp_path):
    words = {"dataset": "folder", "data-dir": str(data), "img-size": 8, "batch-size": 4}
    config = words | {"model": "resnet20_dgl_k4", "cpu-threads": 1, "epochs": 10000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    sweep = {"results": "results.jsonl", "runs": [{"config": "config.yaml"}]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = ("-m", "man_zoo.commands.sweep", str(tmp_path / "sweep.yaml"))
    launch = ("--launch", shlex.join([sys.executable, *ACCELERATE]))
    runs = tmp_path / "runs"
    words = (*command, "--output", str(runs), *launch)
    with started(tmp_path / "output", *words) as it:
        family = it.children(recursive=True)
        it.kill()
        assert_end(family)
    run = runs / "config-seed0"
    log = run.with_name(f"{run.name}.log")
    assert f"has gone; go on with --resume {run}.\n" in log.read_text()
    done = epoch_of(find_checkpoint(run / "checkpoints"))
    assert train_here("--resume", str(run), "--epochs", str(done + 1))["epochs"] == done + 1


def test_what_a_shell_started_is_left_alone(monkeypatch):
    """``nohup python recipes/train.py &`` outlives its shell."""
    for name in (SWEEP, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    before = (threading.active_count(), signal.getsignal(signal.SIGTERM), sys.excepthook)
    LauncherWatch("go on")
    after = (threading.active_count(), signal.getsignal(signal.SIGTERM), sys.excepthook)
    assert after == before
