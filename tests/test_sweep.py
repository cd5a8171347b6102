"""Runs by the list: trained once, resumed, written down; failures and mistakes in a sentence."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from recipe import ROOT, environment, flags, python, train_here, write_images

from man_zoo.commands.sweep import parse_args
from man_zoo.console import UserError
from man_zoo.results.processes import Processes
from man_zoo.results.records import read_results, result_of
from man_zoo.results.sweep import read_sweep, sweep, train_run
from man_zoo.runs import config

RECIPE = ROOT / "recipes" / "train.py"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set, a config, and an empty place for runs."""
    data = write_images(tmp_path / "data")
    base = {"dataset": "folder", "data-dir": str(data), "img-size": 8, "batch-size": 4}
    small = {"epochs": 1, "warmup-epochs": 0, "mixed-precision": "no"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base | {"epochs": 300}))
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(small))
    narrow = {"base": "base.yaml", "model": "resnet20_dgl_k4"}
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(narrow))
    return tmp_path


def write_sweep(folder: Path, *runs: dict, **more: object) -> Path:
    path = folder / "sweep.yaml"
    values = {"results": "lines/out.jsonl", "over": ["short.yaml"], "runs": list(runs)}
    path.write_text(yaml.safe_dump(values | more))
    return path


def read(folder: Path, *runs: dict):
    return read_sweep(write_sweep(folder, *runs), folder / "runs", [])


@pytest.mark.slow
def test_a_sweep_trains_what_is_missing_and_writes_a_line_a_run(folder):
    path = write_sweep(
        folder,
        {"config": "narrow.yaml", "seeds": [0, 1]},
        {"name": "impossible", "config": "narrow.yaml", "flags": {"k": 99}},
    )
    words = [str(RECIPE.with_name("sweep.py")), str(path), "--output", str(folder / "runs")]
    done = python(*words, "--jobs", "2", "--lr", "0.01", check=False)
    assert done.returncode == 1
    assert "1 of 3 runs failed: impossible-seed0." in done.stderr
    assert "k=99" in done.stderr + done.stdout  # what the recipe said
    lines = read_results(folder / "lines" / "out.jsonl")
    assert sorted((line["name"], line["seed"]) for line in lines) == [("narrow", 0), ("narrow", 1)]
    assert lines[0]["model"] == "resnet20_dgl_k4"
    assert all(line["settings"]["lr"] == 0.01 for line in lines)

    # Elsewhere, where the lines are but no run folders: only what has no line is trained.
    elsewhere = ["--output", str(folder / "elsewhere"), "--missing", "--lr", "0.01"]
    write_sweep(folder, {"config": "narrow.yaml", "seeds": [0, 1]})
    assert sweep(parse_args([str(path), *elsewhere])) == lines
    assert not (folder / "elsewhere").exists()

    # Once more: nothing is trained again, and a lost line is written again.
    logs = {log: log.read_text() for log in (folder / "runs").glob("narrow*.log")}
    (folder / "lines" / "out.jsonl").unlink()
    again = sweep(parse_args([*words[1:], "--lr", "0.01"]))
    assert {log: log.read_text() for log in logs} == logs
    assert sorted(again, key=lambda line: line["seed"]) == sorted(
        lines, key=lambda line: line["seed"]
    )


def test_a_stopped_run_goes_on_where_it_was(folder, monkeypatch):
    _, [run] = read(folder, {"config": "narrow.yaml", "flags": {"epochs": 2}})
    train_here(*run.words, "--epochs", "1")
    args = run.folder / "args.yaml"
    args.write_text(args.read_text().replace("epochs: 1\n", "epochs: 2\n", 1))
    (run.folder / "summary.json").unlink()
    before = (run.folder / "log.jsonl").read_text()

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    _, [run] = read(folder, {"config": "narrow.yaml", "flags": {"epochs": 2}})
    assert train_run(run, [sys.executable, str(RECIPE)], Processes())
    assert (run.folder / "log.jsonl").read_text().startswith(before)
    line = result_of(run.folder, "longer")
    assert [record["epoch"] for record in line["epochs"]] == [1, 2]


def test_a_line_says_what_a_run_was_did_and_cost(folder):
    _, [run] = read(folder, {"config": "narrow.yaml", "flags": {"val-interval": 5}})
    summary = train_here(*run.words)
    line = json.loads(json.dumps(result_of(run.folder, "narrow")))
    assert line["top1"] == summary["top1"] == line["exits"][-1] == line["epochs"][-1]["val_top1"]
    assert line["epochs"][0]["losses"] == pytest.approx(summary["losses"], abs=1e-5)
    assert len(line["blocks"]) == len(line["exits"]) == 4
    assert line["blocks"][0].startswith("stem")
    assert (line["data"]["train_count"], line["data"]["val_count"]) == (24, 10)
    assert line["seconds"] == sum(record["seconds"] for record in line["epochs"])
    assert {"torch", "timm", "python", "cpu"} <= line["machine"].keys()
    assert len(line["commit"]) >= 10
    assert "experiment" not in line["settings"]
    assert line["settings"]["batch_size"] == 4


def test_flags_of_a_run_are_those_of_a_config(folder):
    own = {"mixed-precision": "no", "compile": True, "model-kwargs": {"head": "wide"}, "lr": None}
    _, [run] = read(folder, {"config": "narrow.yaml", "flags": own})
    args = config.parse_args(run.words)
    assert (args.mixed_precision, args.compile) == ("no", True)
    assert args.model_kwargs == {"head": "wide"}


def test_a_planned_run_is_known_again(folder):
    planned = {"config": "narrow.yaml", "flags": {"cuts": "balanced"}}
    _, [run] = read(folder, planned)
    train_here(*run.words)
    _, [again] = read(folder, planned)
    assert again.is_finished
    with pytest.raises(UserError, match=r"the run began with.*leave out --cuts"):
        config.parse_args(["--resume", str(run.folder), "--cuts", "balanced"])


def test_what_cannot_be_launched_is_a_sentence(folder):
    path = write_sweep(folder, {"config": "narrow.yaml"})
    words = [str(path), "--output", str(folder / "runs"), "--launch", "nowhere/python"]
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        sweep(parse_args(words))
    with pytest.raises(UserError, match="--launch: No closing quotation"):
        sweep(parse_args([*words, "--launch", "'python"]))


def test_cost_is_that_of_the_method(folder):
    for name, method in (("e2e", "e2e"), ("man", "man_dgl")):
        k = "1" if method == "e2e" else "4"
        words = flags(folder / "data", folder, "--model", f"resnet20_{method}_k{k}")
        words = [word for word in words if word not in ("--model-kwargs", "head=narrow")]
        train_here(*words, "--experiment", name)
    e2e, man = (result_of(folder / name, name) for name in ("e2e", "man"))
    assert man["flops_per_image"] > e2e["flops_per_image"]
    assert man["peak_gib"] > e2e["peak_gib"]  # at 8 px weights are most of it


def test_a_run_of_other_flags_is_not_taken_for_this_one(folder):
    _, [run] = read(folder, {"config": "narrow.yaml"})
    train_here(*run.words)
    shutil.rmtree(run.folder / "checkpoints")
    for other in ({"lr": 0.2}, {"cuts": ["layer1.1", "layer2.0", "layer3.1"]}):
        with pytest.raises(UserError, match=r"runs/narrow-seed0 is a run with other flags"):
            read(folder, {"config": "narrow.yaml", "flags": other})


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"config": "narow.yaml"}, r"narow\.yaml: no such file"),
        ({"confg": "narrow.yaml"}, "Unknown key 'confg'.*'config'"),
        ({"config": "narrow.yaml", "flags": {"learning": 1}}, "narrow: Unknown key 'learning'"),
        ({"config": "narrow.yaml", "flags": ["lr"]}, r"flags is a mapping, not \['lr'\]"),
        ({"config": "narrow.yaml", "seeds": 3}, "seeds is a list, not 3"),
        ({"name": "narrow"}, "the key config is missing"),
        ("narrow.yaml", "expected the keys name, config, seeds, flags, got 'narrow.yaml'"),
        ({"config": "narrow.yaml"}, "two runs would be .*narrow-seed0; expected a name"),
    ],
)
def test_mistakes_end_before_anything_is_trained(folder, run, message):
    with pytest.raises(UserError, match=message):
        read(folder, {"config": "narrow.yaml"}, run)
    assert not (folder / "runs").exists()


def test_a_sweep_file_must_be_one(folder):
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        read_sweep(folder / "none.yaml", folder, [])
    with pytest.raises(UserError, match=r"base\.yaml: Unknown key 'batch-size'; expected results"):
        read_sweep(folder / "base.yaml", folder, [])
