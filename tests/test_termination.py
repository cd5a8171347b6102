"""SIGTERM: a run saves where it is, says how to go on, and ends as if nothing had happened."""

import os
import pkgutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recipe import flags, train_here, write_images
from test_resume import EVERYTHING, assert_same_run

from man_zoo.console import exit_status
from man_zoo.runs.checkpoints import list_all_checkpoints

STREAMED = ("--in-memory", "off", "--workers", "2", "--log-interval", "2")
WORDS = {"in memory": EVERYTHING, "streamed": [*EVERYTHING, *STREAMED]}
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
    return write_images(tmp_path_factory.mktemp("data"))


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
    assert_same_run(run, tmp_path / "whole" / "run")
    assert not [name for name in names(run) if "batch" in name]
    assert not list(run.rglob(".*"))
