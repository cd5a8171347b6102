"""SIGTERM: a run saves where it is, says how to go on, and ends as if nothing had happened."""

import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recipe import environment, flags, python, train_here, write_images
from test_disk import largest_file
from test_images import truncated
from test_interrupt import PATIENCE, in_a_terminal, wait_for
from test_resume import EVERYTHING, KILLED, assert_same_end, cut_short

from man_zoo.console import UserError, exit_status
from man_zoo.parallel.termination import _ONE_SIGNAL
from man_zoo.runs.checkpoints import find_checkpoint, list_all_checkpoints

STREAMED = ("--in-memory", "off", "--workers", "2", "--log-interval", "2")
SKIPPING = [*EVERYTHING, "--skip-bad-images"]
WORDS = {"in memory": SKIPPING, "streamed": [*SKIPPING, *STREAMED]}
TRAIN_BATCH = "man_zoo.training.trainer.Trainer.train_batch"
# Where SIGTERM comes, one after the other, and the checkpoints after it. An epoch is six batches,
# an update two.
SIGNALS = [
    ((TRAIN_BATCH, 1), ["epoch-0000-batch-000002"]),
    ((TRAIN_BATCH, 2), ["epoch-0000-batch-000004"]),
    (("man_zoo.training.evaluate.evaluate", 1), ["epoch-0000-batch-000006"]),
    (("man_zoo.training.evaluate.evaluate", 1), ["epoch-0000-batch-000006"]),
    # While the second epoch is saved, and in the last update of the third.
    (("man_zoo.training.checkpoint.Checkpoints.save", 2), ["epoch-0002-batch-000002"]),
    ((TRAIN_BATCH, 4), ["epoch-0002-batch-000006"]),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = write_images(tmp_path_factory.mktemp("data"), train=25)
    truncated(data / "train" / "class0" / "3.png")
    return data


@contextmanager
def sigterm(function: str, count: int) -> Iterator[None]:
    """SIGTERM as ``function`` is called for the ``count``-th time."""
    owner, _, name = function.rpartition(".")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, pkgutil.resolve_name(owner), name, count)
        yield
    assert signal.getsignal(signal.SIGTERM) == before


def interrupt(patch: pytest.MonkeyPatch, owner: object, name: str, count: int) -> None:
    original: Callable = getattr(owner, name)
    calls = 0

    def counted(*args: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **keywords)

    patch.setattr(owner, name, counted)


def train(*words: str) -> int:
    return exit_status("train.py", lambda: train_here(*words))


def names(run: Path) -> list[str]:
    return [path.name for path in list_all_checkpoints(run / "checkpoints")]


@pytest.mark.parametrize("kind", WORDS)
def test_a_stopped_run_goes_on_bit_identically(kind, data, tmp_path, capsys) -> None:
    train_here(*flags(data, tmp_path / "whole", *WORDS[kind]))
    run = tmp_path / "stopped" / "run"
    words = flags(data, tmp_path / "stopped", *WORDS[kind])
    for where, left in SIGNALS:
        capsys.readouterr()
        with sigterm(*where):
            assert train(*words) == 128 + signal.SIGTERM
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"train.py: stopped by SIGTERM, the checkpoint is written; go on with --resume {run}."
        )
        assert [name for name in names(run) if "batch" in name] == left
        words = ["--resume", str(run)]
    train_here(*words)
    # Without TensorBoard's files: those of one process and one second have no order.
    assert_same_end(run, tmp_path / "whole" / "run")
    assert not [name for name in names(run) if "batch" in name]
    assert not list(run.rglob(".*"))


@pytest.fixture
def stopped(data, tmp_path) -> Path:
    """A run that was stopped in its second epoch of three."""
    with sigterm(TRAIN_BATCH, 7):
        assert train(*flags(data, tmp_path, *SKIPPING)) == 128 + signal.SIGTERM
    assert names(tmp_path / "run") == ["epoch-0001", "epoch-0001-batch-000002"]
    return tmp_path / "run"


def test_readers_take_the_last_finished_epoch(stopped) -> None:
    checkpoints = stopped / "checkpoints"
    assert find_checkpoint(checkpoints).name == "epoch-0001"
    assert (checkpoints / "best").resolve().name == "epoch-0001"
    with pytest.raises(ValueError, match="Unknown checkpoint 'epoch-0001-batch-000002'"):
        find_checkpoint(checkpoints, "epoch-0001-batch-000002")


def test_a_damaged_one_is_dropped_for_that_of_the_epoch_before(stopped, capsys) -> None:
    cut_short(stopped / "checkpoints" / "epoch-0001-batch-000002" / "so_far_0.pkl")
    assert train_here("--resume", str(stopped))["epochs"] == 3
    [said] = [line for line in capsys.readouterr().out.splitlines() if "going on" in line]
    assert "epoch-0001-batch-000002/so_far_0.pkl is damaged" in said
    assert said.endswith("; going on from epoch-0001.")
    assert "epoch-0001-batch-000002" not in names(stopped)


def test_fewer_epochs_than_it_has_begun_are_refused(stopped) -> None:
    with pytest.raises(UserError, match=r"finished 1 epochs and is in the next; .* --epochs 2 or"):
        train_here("--resume", str(stopped), "--epochs", "1")


def test_a_file_that_may_not_grow_leaves_the_last_good_checkpoint(stopped, capsys) -> None:
    weights = stopped / "checkpoints" / "epoch-0001" / "model.safetensors"
    with largest_file(weights.stat().st_size - 1), sigterm(TRAIN_BATCH, 2):
        assert train("--resume", str(stopped)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "nothing half-written is left" in said
    assert said.endswith(f"--resume {stopped} goes on from the last checkpoint.")
    assert names(stopped) == ["epoch-0001", "epoch-0001-batch-000002"]
    assert not list(stopped.rglob(".*"))
    assert train_here("--resume", str(stopped))["epochs"] == 3


# As a process of its own: what ends it otherwise would end the tests.


def test_before_it_trains_it_ends_at_once(data, tmp_path) -> None:
    words = flags(data, tmp_path, *SKIPPING)
    ended = python(
        KILLED, "man_zoo.training.train.create_trainer", "1:SIGTERM", *words, check=False
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM before the training began; go on with --resume" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_group_is_told_and_its_readers_go_on(data, tmp_path) -> None:
    """As by a batch system: the processes that read images get it too."""
    output, run = tmp_path / "output", tmp_path / "run"
    words = flags(data, tmp_path, *SKIPPING, *STREAMED, "--epochs", "10000")
    with in_a_terminal(output, "train", *words) as command:
        wait_for(lambda: list_all_checkpoints(run / "checkpoints"), command, output)
        os.killpg(command.pid, signal.SIGTERM)
        assert command.wait(PATIENCE) == 128 + signal.SIGTERM
    text = output.read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1].endswith(
        f"stopped by SIGTERM, the checkpoint is written; go on with --resume {run}."
    )


def test_a_child_that_lives_on_does_not_keep_a_run_from_its_end() -> None:
    """As a process that reads images does, while an error still holds its loader."""
    code = """
import os, signal
from man_zoo.parallel.termination import Termination
with Termination(""):
    child = os.fork()
    if not child:
        signal.pause()
os.kill(child, signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_second_one_ends_a_run_that_does_not_come_to_an_update(data, tmp_path) -> None:
    stuck = tmp_path / "stuck.py"
    stuck.write_text(STUCK)
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(stuck), *flags(data, tmp_path, "--skip-bad-images")],
            env=environment(),
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(lambda: (tmp_path / "run" / "stuck").exists(), process, output)
        process.terminate()
        time.sleep(_ONE_SIGNAL + 1)
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert "ended by a second SIGTERM; go on with --resume" in output.read_text()


STUCK = """
import sys, time
from pathlib import Path
from man_zoo.commands import train
from man_zoo.training.trainer import Trainer
def train_batch(*_):
    Path(sys.argv[sys.argv.index("--output") + 1], "run", "stuck").touch()
    time.sleep(1000)
Trainer.train_batch = train_batch
sys.exit(train.main())
"""
