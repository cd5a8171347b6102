"""Disks that are full or closed: one sentence, nothing half-written, and the run goes on later."""

import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recipe import flags, train_here, write_images

from man_zoo.commands.__main__ import main as run_command
from man_zoo.console import exit_status
from man_zoo.runs.checkpoints import list_checkpoints
from man_zoo.runs.folder import load_log

FULL = "nothing half-written is left"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run of two epochs with all the room that it wants."""
    output = tmp_path_factory.mktemp("runs")
    train_here(*flags(data, output, "--epochs", "2", "--opt", "adamw", "--lr", "0.001"))
    return output / "run"


def size(*paths: Path) -> int:
    """Bytes of all files in there, as a tmpfs counts them."""
    files = [path for above in paths for path in above.rglob("*") if path.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files if not file.is_symlink())


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[..., Path]]:
    """Mount a disk of some bytes, or give the mounted one others."""
    folder = tmp_path / "disk"

    def mount(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if folder.is_dir():
            command[4] = ",".join(["remount", *options])
        folder.mkdir(exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Files end after so many bytes, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def words_of(data: Path, output: Path) -> list[str]:
    return flags(data, output, "--epochs", "2", "--opt", "adamw", "--lr", "0.001")


def train(*words: str) -> int:
    return exit_status("train.py", lambda: train_here(*words))


def check_rest(run: Path, epochs: int) -> None:
    """What is left of a run is what a run of some epochs has."""
    assert not [path for path in run.parent.rglob(".*") if path.name != ".run.lock"]
    assert len(list_checkpoints(run / "checkpoints")) == epochs
    assert (run / "args.yaml").read_text().endswith("\n")
    json.loads((run / "metadata.json").read_text())
    if epochs:
        text = (run / "log.jsonl").read_text()
        assert text.endswith("\n")
        assert len(load_log(run)) >= epochs


# What fits of a run: a disk that has that, and half of the next thing.
STAGES = {
    "the first weights": lambda run, last: size(run / "checkpoints" / "epoch-0001") // 3,
    "the first optimizers": lambda run, last: (
        size(run / "checkpoints" / "epoch-0001") - size_of(last / "optimizer_3.bin") // 2
    ),
    "the second checkpoint": lambda run, last: size(run / "checkpoints" / "epoch-0001") * 3 // 2,
    "the export": lambda run, last: size(run / "checkpoints") + size(run / "export") // 2,
}


def size_of(file: Path) -> int:
    return file.stat().st_size


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(
    stage, data, whole, disk, capsys
) -> None:
    last = whole / "checkpoints" / "epoch-0002"
    folder = disk(f"size={STAGES[stage](whole, last) + 64 * 1024}")
    capsys.readouterr()
    assert train(*words_of(data, folder)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"train.py: {folder}/run/")
    assert FULL in said
    assert said.endswith(f"--resume {folder}/run goes on from the last checkpoint.")
    epochs = {"the second checkpoint": 1, "the export": 2}.get(stage, 0)
    check_rest(folder / "run", epochs)

    disk(f"size={2 * size(whole)}")
    assert train("--resume", str(folder / "run")) == 0
    assert [line["epoch"] for line in load_log(folder / "run")] == [1, 2]
    for file in ("checkpoints/epoch-0002/model.safetensors", "export/model.safetensors"):
        assert (folder / "run" / file).read_bytes() == (whole / file).read_bytes()


def test_a_disk_with_room_for_nothing_leaves_nothing(data, disk, capsys) -> None:
    folder = disk("size=4096")
    assert train(*words_of(data, folder)) == 1
    assert FULL in capsys.readouterr().err.splitlines()[-1]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer_2.bin"])
def test_a_file_that_may_not_grow_is_a_sentence(file, data, whole, tmp_path, capsys) -> None:
    checkpoint = whole / "checkpoints" / "epoch-0002"
    limit = (checkpoint / file).stat().st_size - 1
    with largest_file(limit):
        assert train(*words_of(data, tmp_path)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"train.py: {tmp_path}/run/checkpoints/.unfinished")
    assert FULL in said
    check_rest(tmp_path / "run", 0)


def test_a_disk_that_is_read_only_is_a_sentence(data, disk, capsys) -> None:
    folder = disk("size=1m", "ro")
    assert train(*words_of(data, folder)) == 1
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    assert not list(folder.iterdir())


def test_a_disk_that_becomes_read_only_keeps_what_it_has(data, whole, disk, capsys) -> None:
    folder = disk(f"size={4 * size(whole)}")
    assert train(*words_of(data, folder)) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    disk("ro")
    for words in (
        ["train", "--resume", str(folder / "run"), "--epochs", "3"],
        ["export", str(folder / "run"), "--force"],
        ["export", str(folder / "run"), "--output", str(folder / "export")],
        ["benchmark", "resnet20_dgl_k4", "--no-time", "--batch-size", "2", "--json",
         str(folder / "figures.json")],
    ):  # fmt: skip
        capsys.readouterr()
        assert run_command(words) == 1, words
        said = [line for line in capsys.readouterr().err.splitlines() if "man-zoo" in line]
        assert len(said) == 1
        assert "Read-only file system" in said[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/runs"])
def test_a_place_that_is_no_folder_is_a_sentence(output, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    assert train(*words_of(data, Path(output))) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert output.split("/")[1 if output[0] == "/" else 0] in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
