"""A run that is killed and resumed ends as if nothing had happened."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from recipe import ROOT, flags, python, train_here, write_images

from man_zoo.console import UserError
from man_zoo.runs.checkpoints import list_checkpoints

TRAIN = str(ROOT / "recipes" / "train.py")
KILLED = str(ROOT / "tests" / "killed_recipe.py")
# Every source of randomness and every kind of state: numpy's generator (mixup, cutmix), torch's
# (drop path), moving averages, gradients gathered over two batches. 3 updates an epoch.
EVERYTHING = [
    *("--epochs", "3", "--mixup", "0.5", "--cutmix", "0.5", "--model-ema"),
    *("--model-ema-decay", "0.9", "--grad-accum-steps", "2", "--warmup-epochs", "1"),
    *("--model-kwargs", "head=narrow", "drop_path_rate=0.3"),
]
# Where to kill, one after the other. An epoch is six batches; a checkpoint takes torch.save seven
# times: four optimizers, random states, progress, EMA.
KILLS = [
    ("man_zoo.training.trainer.Trainer.train_batch", 5),  # before there is a checkpoint
    ("man_zoo.training.trainer.Trainer.train_batch", 10),  # in the second epoch
    ("torch.save", 4),  # while its checkpoint is written
    ("man_zoo.training.checkpoint.Checkpoints._tidy", 1),  # before best points at it
    ("man_zoo.commands.train.export_run", 2),  # at the very end
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    python(TRAIN, *flags(data, output, *EVERYTHING))
    return output / "run"


@pytest.mark.slow
def test_killed_run_resumes_bit_identically(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    words = flags(data, tmp_path, *EVERYTHING)
    for function, count in KILLS:
        killed = python(KILLED, function, str(count), *words, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
        words = ["--resume", str(run)]
    python(TRAIN, *words)

    assert_same_run(run, uninterrupted)
    assert not list(run.rglob(".*"))


def assert_same_run(run: Path, expected: Path) -> None:
    checkpoints = [path.name for path in list_checkpoints(expected / "checkpoints")]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == checkpoints
    for file in ("checkpoints/epoch-0003/model.safetensors", "export/model.safetensors",
                 "export-ema/model.safetensors"):  # fmt: skip
        assert (run / file).read_bytes() == (expected / file).read_bytes(), file
    assert (run / "checkpoints" / "best").readlink() == (expected / "checkpoints/best").readlink()
    lines, expected_lines = (records(folder) for folder in (run, expected))
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for key in lines[0].keys() - {"seconds", "images_per_second"}:
        assert [line[key] for line in lines] == [line[key] for line in expected_lines], key


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def finished(uninterrupted, tmp_path) -> Path:
    """A copy of a run of three epochs."""
    return shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)


@pytest.mark.slow
def test_random_states_that_cannot_be_read_are_no_secret(finished):
    torch.save({}, finished / "checkpoints" / "epoch-0003" / "random_states_0.pkl")
    with pytest.raises(KeyError, match="random_state"):
        train_here("--resume", str(finished))


@pytest.mark.slow
def test_resume_with_more_epochs_goes_on_to_them(finished):
    train_here("--resume", str(finished), "--epochs", "4")
    assert [line["epoch"] for line in records(finished)] == [1, 2, 3, 4]
    assert (finished / "checkpoints" / "epoch-0004").is_dir()
    assert "epochs: 4" in (finished / "args.yaml").read_text()


@pytest.mark.slow
def test_resume_refuses_another_run(finished):
    with pytest.raises(UserError, match="has finished 3 epochs; expected --epochs 3 or more"):
        train_here("--resume", str(finished), "--epochs", "2")
    with pytest.raises(UserError, match=r"with --lr 0.1, not 0.2; start a new run"):
        train_here("--resume", str(finished), "--lr", "0.2")
