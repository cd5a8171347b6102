"""Runs and exports are passed on: no file of them is run, and each ends in a sentence.

Checksums are no help there: who means harm writes them too.
"""

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from recipe import flags, train_here, write_images
from safetensors.torch import load_file

from man_zoo.commands.__main__ import main as run_command
from man_zoo.console import UserError
from man_zoo.results.records import result_of
from man_zoo.runs.checksums import write_checksums
from man_zoo.runs.config import parse_args, read_args, save_args


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def write_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def write_torchs(path: Path, bomb: Bomb) -> None:
    """As ``torch.save`` does, a bomb among tensors."""
    torch.save({"weight": torch.ones(2), "step": bomb}, path)


def write_legacy(path: Path, bomb: Bomb) -> None:
    torch.save([bomb], path, _use_new_zipfile_serialization=False)


def write_ascii(path: Path, bomb: Bomb) -> None:
    """A pickle that is text."""
    path.write_bytes(pickle.dumps(bomb, protocol=0))


def write_yaml(path: Path, bomb: Bomb) -> None:
    path.write_text(f"lr: !!python/object/apply:builtins.open [{bomb.mark}, w]\n")


PICKLES = (write_pickle, write_torchs, write_legacy)
TEXTS = (write_pickle, write_ascii)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    train_here(*flags(data, output, "--model-ema"))
    return output / "run"


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A run that someone passed on."""
    return shutil.copytree(made, tmp_path / "run", symlinks=True)


@pytest.fixture
def ends_in_a_sentence(tmp_path, capsys, monkeypatch):
    """Put a bomb into a file and run a command, which is to refuse the file by name."""

    def ends(write, path: Path, *words: object) -> None:
        mark = tmp_path / "mark"
        write(path, Bomb(mark))
        if path.parent.parent.name == "checkpoints" and path.name != "checksums.json":
            write_checksums(path.parent)
        GradientState._reset_state()
        AcceleratorState._reset_state(True)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        status = run_command([str(word) for word in words])
        assert not mark.exists()
        assert status == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert str(path) in said.splitlines()[-1]
        assert said.count(f"man-zoo {words[0]}: ") == 1

    return ends


def test_a_bomb_is_one(tmp_path):
    for write in PICKLES:
        write(tmp_path / "file", Bomb(tmp_path / "mark"))
        with suppress(RuntimeError):  # that it is no file of torch's, after it went off
            torch.load(tmp_path / "file", weights_only=False)
        (tmp_path / "mark").unlink()
    write_ascii(tmp_path / "file", Bomb(tmp_path / "mark"))
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "mark").exists()


OF_A_CHECKPOINT = [
    *(("optimizer.bin", write) for write in PICKLES),
    ("optimizer_3.bin", write_torchs),
    *(("random_states_0.pkl", write) for write in PICKLES),
    *(("custom_checkpoint_0.pkl", write) for write in PICKLES),
    ("custom_checkpoint_1.pkl", write_torchs),
    ("scaler_0.pt", write_torchs),
    ("scheduler.bin", write_torchs),
    ("sampler.bin", write_torchs),
    ("dl_state_dict.bin", write_torchs),
    ("pytorch_model.bin", write_torchs),
    ("model.safetensors", write_torchs),
    ("average.safetensors", write_pickle),
    *(("progress.json", write) for write in TEXTS),
    *(("checksums.json", write) for write in TEXTS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), OF_A_CHECKPOINT)
def test_a_run_is_gone_on_with_without_running_its_files(name, write, run, ends_in_a_sentence):
    ends_in_a_sentence(write, run / "checkpoints/epoch-0001" / name, "train", "--resume", run)


@pytest.mark.parametrize(
    ("command", "name", "write"),
    [
        ("train --resume RUN", "args.yaml", write_yaml),
        ("train --resume RUN", "args.yaml", write_pickle),
        ("train --resume RUN", "log.jsonl", write_ascii),
        ("train --resume RUN", "log.jsonl", write_pickle),
        ("export RUN -o OUT", "args.yaml", write_yaml),
        ("export RUN -o OUT", "metadata.json", write_pickle),
        ("export RUN -o OUT", "log.jsonl", write_ascii),
        ("export RUN -o OUT", "checkpoints/epoch-0001/model.safetensors", write_torchs),
        ("export RUN -o OUT", "checkpoints/epoch-0001/checksums.json", write_pickle),
        ("export RUN -o OUT --ema", "checkpoints/epoch-0001/average.safetensors", write_pickle),
        ("evaluate RUN", "args.yaml", write_yaml),
        ("evaluate RUN", "metadata.json", write_ascii),
        ("evaluate RUN", "checkpoints/epoch-0001/model.safetensors", write_torchs),
        ("evaluate RUN --exits", "checkpoints/epoch-0001/model.safetensors", write_pickle),
        ("analyse RUN", "args.yaml", write_yaml),
        ("analyse RUN", "metadata.json", write_pickle),
        ("analyse RUN", "checkpoints/epoch-0001/model.safetensors", write_torchs),
        ("evaluate RUN/export --data-dir DATA --dataset folder", "export/config.json", write_ascii),
        ("evaluate RUN/export --data-dir DATA --dataset folder", "export/model.safetensors",
         write_torchs),
        ("push RUN/export --repo me/weights", "export/config.json", write_pickle),
    ],
)  # fmt: skip
def test_what_is_read_of_a_run_is_not_run(
    command, name, write, run, data, tmp_path, ends_in_a_sentence
):
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "DATA": str(data)}
    words = [word.replace("RUN", str(run)) for word in command.split()]
    ends_in_a_sentence(write, run / name, *(places.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()


SHARD = "checkpoints/epoch-0001/shard-00001-model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    "command", ["train --resume RUN", "export RUN --ema -o OUT", "evaluate RUN", "analyse RUN"]
)
def test_no_share_of_a_sharded_run_is_run(command, tmp_path, sharded, ends_in_a_sentence):
    run = shutil.copytree(sharded, tmp_path / "run", symlinks=True)
    words = command.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")).split()
    ends_in_a_sentence(write_torchs, run / SHARD, *words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sharded(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("sharded")
    train_here(*flags(data, output, "--model-ema", "--fsdp"))
    return output / "run"


# Weights of someone else's to begin with. timm takes pickles where there is no safetensors.


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("config.json", write_ascii),
        ("model.safetensors", write_torchs),
        *(("pytorch_model.bin", write) for write in PICKLES),
        ("weights.pth", write_torchs),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_weights_to_begin_with_are_not_run(command, name, write, run, data, tmp_path, request):
    ends_in_a_sentence = request.getfixturevalue("ends_in_a_sentence")
    folder = (run / "export").rename(tmp_path / "weights")
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    if command == "evaluate":
        words = ["evaluate", folder, "--dataset", "folder", "--data-dir", data]
    else:
        words = flags(data, tmp_path / "runs", "--model", f"local-dir:{folder}", "--model-kwargs")
        words = ["finetune", *words]
    ends_in_a_sentence(write, folder / name, *words)
    assert not (tmp_path / "runs").exists()


def test_pickled_weights_that_are_only_weights_are_taken(run, data, tmp_path):
    """Beside a file of another trainer's that holds more, and is not looked at."""
    folder = run / "export"
    train = flags(data, tmp_path / "runs", "--pretrained", "--model", f"local-dir:{folder}")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    write_torchs(folder / "training_args.bin", Bomb(tmp_path / "mark"))
    train_here(*train, "--model-kwargs")
    assert not (tmp_path / "mark").exists()


def test_a_summary_is_not_run(run, tmp_path):
    write_pickle(run / "summary.json", Bomb(tmp_path / "mark"))
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        result_of(run, "name")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("address", ["pipe:touch mark; cat ", "s3://'; touch mark; '"])
def test_an_address_of_data_is_no_command_unless_the_user_says_so(address, run):
    """webdataset starts a shell for such an address."""
    args = parse_args(["--dataset", "wds/images", "--data-dir", address, "--model", "resnet20"])
    save_args(args, run / "args.yaml")
    assert read_args(run).data_dir == "data"
    with pytest.raises(UserError, match="an address that webdataset may pass on to a shell"):
        parse_args(["--resume", str(run)])
    assert parse_args(["--resume", str(run), "--data-dir", address]).data_dir == address
    assert parse_args(["--resume", str(run), "--data-dir", os.curdir]).data_dir == os.curdir
