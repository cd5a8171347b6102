"""Weights of a dense task on the Hub: the decoder goes along, and the card says how to load it."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from loopback_hub import TOKEN, loopback_hub
from recipe import train_here

import man_zoo
from man_zoo import weights
from man_zoo.commands.__main__ import main
from man_zoo.hub.card import is_dense, read_metadata
from man_zoo.runs.model import load_run
from man_zoo.tasks import Classification, create_task, keywords_of

FLAGS = """--task detection --dataset pasted_digits --model test_resnet --method dgl --k 2
    --decoder retinanet_v2 --model-kwargs anchor_size=12 pyramid_width=32 --img-size 64
    --train-num-samples 8 --val-num-samples 4 -b 4 -j 0 --epochs 1 --warmup-epochs 0"""
FILES = ("model.safetensors", "decoder.safetensors", "config.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A detector of digits after an epoch of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    train_here(*shlex.split(FLAGS), "--output", str(folder), "--experiment", "detector")
    return folder / "detector"


def test_a_push_takes_the_decoder_along_and_leaves_the_index_alone(
    run, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with loopback_hub(tmp_path / "remote") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        assert main(["push", str(run / "export"), "--repo", "me/detector"]) == 0, (
            capsys.readouterr()
        )
        published = server.folder("me/detector")
        for name in FILES:
            assert (published / name).read_bytes() == (run / "export" / name).read_bytes()
        assert "hf-hub:me/detector" in (published / "README.md").read_text()
    assert weights.read_index() == {}

    assert main(["export", str(run), "--force", "--index"]) == 1
    assert "the index is one of classifiers" in capsys.readouterr().err
    assert weights.read_index() == {}


def test_without_its_decoder_it_is_no_export(run, tmp_path, capsys) -> None:
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_bytes((run / "export" / name).read_bytes())
    assert main(["push", str(tmp_path), "--repo", "me/detector", "--dry-run"]) == 1
    assert "has no decoder.safetensors" in capsys.readouterr().err


def test_the_cards_code_makes_the_trained_network(run, monkeypatch) -> None:
    card = (run / "export" / "README.md").read_text()
    code = card[card.index("import man_zoo\n") :].partition("```")[0]
    monkeypatch.chdir(run / "export")
    names: dict = {}
    exec(code.replace("local-dir:FOLDER", f"local-dir:{run / 'export'}"), names)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        loaded = names["model"].eval()(images)
        assert torch.equal(loaded, load_run(run).eval()(images))
    assert "index" not in card.partition("## Load")[2]


def test_a_detector_is_not_analysed(run, tmp_path, capsys) -> None:
    assert main(["analyse", str(run), "--output", str(tmp_path / "new")]) == 1
    assert "is a run of detection; expected runs of classifiers" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_export_of_before_tasks_is_one_of_a_classifier(tmp_path) -> None:
    config = {"man_zoo": {"name": "resnet20_dgl_k4", "tag": "x", "metrics": {"top1": 1.0}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not is_dense(read_metadata(tmp_path))


def test_the_keywords_of_a_task_make_it_again() -> None:
    task = create_task("detection", 3, "retinanet_v2", anchor_size=12, pyramid_width=64)
    given = keywords_of(task)
    assert given == {
        "task": "detection", "decoder": "retinanet_v2", "num_classes": 3, "anchor_size": 12,
        "pyramid_width": 64,
    }  # fmt: skip
    assert man_zoo.localize("test_resnet", "dgl", 2, img_size=64, **given).task == task
    assert keywords_of(Classification(3)) == {}
