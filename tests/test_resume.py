"""A run that is killed and resumed ends as if nothing had happened."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from recipe import ROOT, flags, processes, python, train_here, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import Linear

from man_zoo.console import UserError
from man_zoo.hub.export import export_run
from man_zoo.parallel.places import Places
from man_zoo.runs.checkpoints import checkpoint_name, find_checkpoint, list_checkpoints
from man_zoo.runs.checksums import Damaged, compare_checksums, write_checksums
from man_zoo.runs.model import load_run
from man_zoo.training.checkpoint import Checkpoints, Progress

TWO = processes(2)
TRAIN = str(ROOT / "recipes" / "train.py")
KILLED = str(ROOT / "tests" / "killed_recipe.py")
# Every source of randomness and every kind of state: numpy's generator (mixup, cutmix), torch's
# (drop path), moving averages, gradients gathered over two batches. 3 updates an epoch.
EVERYTHING = [
    *("--epochs", "3", "--mixup", "0.5", "--cutmix", "0.5", "--model-ema"),
    *("--model-ema-decay", "0.9", "--grad-accum-steps", "2", "--warmup-epochs", "1"),
    *("--model-kwargs", "head=narrow", "drop_path_rate=0.3"),
]
# Where to kill, one after the other. An epoch is six batches; a checkpoint takes torch.save five
# times: four optimizers, random states.
KILLS = [
    ("man_zoo.training.trainer.Trainer.train_batch", 5),  # before there is a checkpoint
    ("man_zoo.training.trainer.Trainer.train_batch", 10),  # in the second epoch
    ("torch.save", 4),  # while its checkpoint is written
    ("man_zoo.training.checkpoint.Checkpoints.tidy", 2),  # before best points at it
    ("man_zoo.commands.train.export_run", 2),  # at the very end
]

TIMED = {
    *("seconds", "images_per_second", "busy_process1", "busy_process2"),
    *(f"seconds_block{j}" for j in (1, 2, 3, 4)),
}


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
    assert [step for step, _ in points(run)["val_top1"]] == [3, 6, 9]
    assert not list(run.rglob(".*"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def assert_same_run(run: Path, expected: Path) -> None:
    assert_same_end(run, expected)
    assert points(run) == points(expected)


def assert_same_end(run: Path, expected: Path) -> None:
    checkpoints = [path.name for path in list_checkpoints(expected / "checkpoints")]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == checkpoints
    assert_same_weights(run, expected)
    assert (run / "checkpoints" / "best").readlink() == (expected / "checkpoints/best").readlink()
    lines, expected_lines = (records(folder) for folder in (run, expected))
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for key in expected_lines[0].keys() - TIMED:
        assert [line.get(key) for line in lines] == [line[key] for line in expected_lines], key


def assert_same_weights(run: Path, expected: Path) -> None:
    for file in ("checkpoints/epoch-0003/model.safetensors", "export/model.safetensors",
                 "export-ema/model.safetensors"):  # fmt: skip
        assert (run / file).read_bytes() == (expected / file).read_bytes(), file


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: step and value of every point."""
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"]) - TIMED
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def finished(uninterrupted, tmp_path) -> Path:
    """A copy of a run of three epochs."""
    return shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)


@pytest.mark.slow
def test_random_states_that_cannot_be_read_are_no_secret(finished):
    newest = finished / "checkpoints" / "epoch-0003"
    torch.save({}, newest / "random_states_0.pkl")
    write_checksums(newest)
    with pytest.raises(UserError, match=r"epoch-0003 does not fit this run: 'random_state'"):
        train_here("--resume", str(finished))


@pytest.mark.slow
def test_a_recomputing_run_is_resumed_as_if_it_kept_everything(data, tmp_path):
    modes = ("selective", "layer1.0=stepwise", "layer2.0=all", "auxiliaries=sparing")
    same = ("--sched", "constant")
    train_here(*flags(data, tmp_path / "keeps", "--epochs", "2", *same))
    train_here(*flags(data, tmp_path / "forgets", *same, "--recompute", *modes))
    train_here("--resume", str(tmp_path / "forgets" / "run"), "--epochs", "2")
    keeps, forgets = (
        (tmp_path / name / "run/checkpoints/epoch-0002/model.safetensors").read_bytes()
        for name in ("keeps", "forgets")
    )
    assert keeps == forgets


# Damage


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"cut short": cut_short, "flipped": flip_a_bit, "lost": Path.unlink}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_of_a_checkpoint_is_found(damage, finished):
    newest = finished / "checkpoints" / "epoch-0003"
    compare_checksums(newest)
    for path in sorted(newest.iterdir()):
        kept = path.read_bytes()
        DAMAGE[damage](path)
        with pytest.raises(Damaged) as error:
            compare_checksums(newest)
        assert str(path) in str(error.value)
        path.write_bytes(kept)
    compare_checksums(newest)
    (newest / "custom_checkpoint_0.pkl").touch()
    with pytest.raises(Damaged, match=r"custom_checkpoint_0.pkl was not there when the"):
        compare_checksums(newest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("cut short", "model.safetensors"),
        ("flipped", "optimizer_2.bin"),
        ("flipped", "random_states_0.pkl"),
        ("lost", "progress.json"),
        ("lost", "checksums.json"),
        ("emptied", ""),
    ],
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    damage, name, finished, uninterrupted, capsys
):
    newest = finished / "checkpoints" / "epoch-0003"
    if damage == "emptied":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        DAMAGE[damage](newest / name)
    train_here("--resume", str(finished))
    [said] = [line for line in capsys.readouterr().out.splitlines() if "going on" in line]
    assert said.startswith(str(newest / (name or "checksums.json")))
    assert said.endswith("; going on from epoch-0002.")
    assert_same_run(finished, uninterrupted)


@pytest.mark.slow
def test_a_run_that_goes_back_drops_the_damaged_checkpoint(finished):
    flip_a_bit(finished / "checkpoints" / "epoch-0003" / "average.safetensors")
    assert train_here("--resume", str(finished), "--epochs", "2")["epochs"] == 2
    assert [line["epoch"] for line in records(finished)] == [1, 2]
    names = {path.name for path in list_checkpoints(finished / "checkpoints")}
    assert "epoch-0002" in names
    assert "epoch-0003" not in names
    assert (finished / "checkpoints" / "best").resolve().is_dir()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_is_refused_and_left(finished):
    for checkpoint in list_checkpoints(finished / "checkpoints"):
        cut_short(checkpoint / "optimizer.bin")
    before = contents(finished)
    with pytest.raises(UserError, match=r"epoch-0003/optimizer.bin is damaged.* start .* anew"):
        train_here("--resume", str(finished))
    assert contents(finished) == before


@pytest.mark.slow
def test_readers_refuse_a_damaged_checkpoint(finished, tmp_path):
    flip_a_bit(finished / "checkpoints" / "epoch-0003" / "model.safetensors")
    sentence = r"epoch-0003/model.safetensors is damaged: it was cut short or altered"
    for checkpoint in ("last", "epoch-0003"):
        with pytest.raises(UserError, match=sentence):
            export_run(finished, tmp_path / "export", checkpoint=checkpoint)
        for auxiliaries in (True, False):
            with pytest.raises(UserError, match=sentence):
                load_run(finished, checkpoint, auxiliaries=auxiliaries)
    assert not (tmp_path / "export").exists()
    export_run(finished, tmp_path / "export", checkpoint="epoch-0002")


@pytest.mark.slow
def test_a_damaged_log_is_refused(finished):
    log = finished / "log.jsonl"
    log.write_text(log.read_text().replace('"epoch": 2', '"epoch": 2"'))
    before = contents(finished)
    with pytest.raises(UserError, match=r"log.jsonl is damaged"):
        train_here("--resume", str(finished))
    assert contents(finished) == before
    log.unlink()
    with pytest.raises(UserError, match=r"log.jsonl is missing"):
        train_here("--resume", str(finished))


@pytest.mark.slow
def test_processes_go_back_together(data, tmp_path):
    words = flags(data, tmp_path, "--epochs", "2")
    python(*TWO, TRAIN, *words)
    newest = tmp_path / "run" / "checkpoints" / "epoch-0002"
    weights = (newest / "model.safetensors").read_bytes()
    flip_a_bit(newest / "random_states_1.pkl")
    resumed = python(*TWO, TRAIN, "--resume", str(tmp_path / "run"))
    assert resumed.stdout.count("going on from epoch-0001.") == 1
    assert (newest / "model.safetensors").read_bytes() == weights


# More epochs, and other runs


def test_the_newest_checkpoint_is_the_one_of_most_epochs(tmp_path):
    """Names of five digits sort before those of four."""
    for epoch in (2, 9_998, 9_999, 10_000, 10_001):
        (tmp_path / checkpoint_name(epoch)).mkdir()
    (tmp_path / "epoch-0002.bak").mkdir()
    progress = Progress(epoch=10_001, best_epoch=9_998)
    checkpoints = Checkpoints(
        Accelerator(cpu=True), Places(), Linear(1, 1), None, {}, progress, None, tmp_path, keep=2
    )
    assert find_checkpoint(tmp_path).name == "epoch-10001"
    checkpoints.tidy()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["epoch-9998", "epoch-10000", "epoch-10001"]
    assert find_checkpoint(tmp_path, "best").name == "epoch-9998"
    assert find_checkpoint(tmp_path, "epoch-10000").name == "epoch-10000"


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
