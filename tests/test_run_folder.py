"""A run folder is one run's: its name, what may be replaced, who may write, what may be linked."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from recipe import ROOT, environment, flags, processes, python, train_here, write_images

from man_zoo import weights as published
from man_zoo.commands.__main__ import main as run_command
from man_zoo.console import UserError
from man_zoo.hub.export import default_tag, export_run
from man_zoo.hub.index import add_to_index
from man_zoo.hub.push import plan_push
from man_zoo.runs.config import parse_args, read_args, save_args
from man_zoo.runs.folder import load_log
from man_zoo.runs.lock import hold

TRAIN = str(ROOT / "recipes" / "train.py")
TWO = processes(2)
PATIENCE = 300  # seconds, far above what is needed: not to wait for ever


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A run of one epoch, for reading."""
    output = tmp_path_factory.mktemp("runs")
    train_here(*flags(data, output))
    assert [path.name for path in output.iterdir()] == ["run"]
    return output / "run"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Names


@pytest.mark.parametrize("name", ["", ".", "..", "../victim", "/victim", "a/b", ".hidden", "a\\b"])
def test_an_experiment_is_the_name_of_a_folder(name, data, tmp_path):
    with pytest.raises(UserError, match="--experiment: expected the name of a folder"):
        train_here(*flags(data, tmp_path / "runs", "--overwrite", "--experiment", name))
    assert not list(tmp_path.iterdir())


def test_a_config_cannot_lead_out_of_the_output_either(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("experiment: ../victim\n")
    with pytest.raises(UserError, match="expected the name of a folder"):
        parse_args(["-c", str(config)])


def test_a_model_with_slashes_makes_a_name_without(data, finished, tmp_path):
    words = flags(data, tmp_path, "--model", f"local-dir:{finished / 'export'}", "--model-kwargs")
    del words[words.index("--experiment") : words.index("--experiment") + 2]
    train_here(*words)
    [run] = tmp_path.iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-local-dir-.*-run-export-folder", run.name)
    assert read_args(run).model == f"local-dir:{finished / 'export'}"


# Replacing


def test_overwrite_leaves_folders_that_are_no_runs(data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("precious")
    for args in (None, "aa: 3\nmodel: resnet50\nsplit_bn: false\n"):  # none, and timm's
        if args:
            (run / "args.yaml").write_text(args)
        before = contents(tmp_path)
        with pytest.raises(UserError, match=r"run is no run of man_zoo, so --overwrite does not"):
            train_here(*flags(data, tmp_path, "--overwrite"))
        assert contents(tmp_path) == before


def test_overwrite_leaves_files_and_links(data, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    save_args(parse_args([]), victim / "args.yaml")
    before = contents(victim)
    for target in (victim, tmp_path / "nowhere"):
        (tmp_path / "run").symlink_to(target)
        with pytest.raises(UserError, match="run is a link; remove it"):
            train_here(*flags(data, tmp_path, "--overwrite"))
        (tmp_path / "run").unlink()
    assert contents(victim) == before
    (tmp_path / "run").write_text("precious")
    with pytest.raises(UserError, match="run is no run of man_zoo"):
        train_here(*flags(data, tmp_path, "--overwrite"))
    assert (tmp_path / "run").read_text() == "precious"


def test_overwrite_replaces_a_run_or_nothing_whole(data, tmp_path):
    (tmp_path / "run").mkdir()
    train_here(*flags(data, tmp_path, "--overwrite", "--model-ema"))
    train_here(*flags(data, tmp_path, "--overwrite", "--seed", "1"))
    assert read_args(tmp_path / "run").seed == 1
    assert not (tmp_path / "run" / "export-ema").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_start_that_fails_leaves_nothing(data, tmp_path):
    output = tmp_path / "new" / "runs"
    for words in (["--opt", "sdg"], ["--grad-accum-steps", "99"], ["--data-dir", "nowhere"]):
        with pytest.raises(UserError):
            train_here(*flags(data, output, *words))
        assert not list(tmp_path.iterdir())


def test_a_start_that_is_cut_off_can_be_started_anew(data, tmp_path, monkeypatch):
    """At any moment: what stands under a run's name is a run."""
    for function in ("save_args", "save_metadata"):

        def cut_off(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"man_zoo.training.setup.{function}", cut_off)
            with pytest.raises(KeyboardInterrupt):
                train_here(*flags(data, tmp_path))
        assert not (tmp_path / "run").exists()
    train_here(*flags(data, tmp_path))


def test_force_replaces_exports_of_ours_alone(finished, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for config in ('{"architecture": "resnet50"}', "[]", "{"):
        (folder / "config.json").write_text(config)
        with pytest.raises(UserError, match="is no exported folder, so it is not replaced"):
            export_run(finished, folder, force=True)
        assert [path.name for path in folder.iterdir()] == ["config.json"]
    ours = export_run(finished, tmp_path / "ours")
    (tmp_path / "link").symlink_to(ours)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(UserError, match=f"{name} is a link; expected a folder"):
            export_run(finished, tmp_path / name, force=True)
        assert (tmp_path / name).is_symlink()
    assert export_run(finished, ours, force=True) == ours


# The index


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("name", "./../../../victim_dgl_k4"),
        ("name", "/victim_dgl_k4"),
        ("name", "victim"),
        ("tag", "../victim"),
        ("tag", "x/../../victim"),
        ("tag", ".hidden"),
        ("tag", ""),
    ],
)
def test_nothing_of_a_name_leads_out_of_the_hub(key, text, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "HUB", tmp_path / "checkout" / "hub")
    folder = export_run(finished, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    config["man_zoo"][key] = text
    (folder / "config.json").write_text(json.dumps(config))
    for use in (add_to_index, lambda folder: plan_push(folder, "me/weights")):
        with pytest.raises(UserError, match=re.escape(str(folder / "config.json"))):
            use(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("tag", ["../victim", ".hidden", "two words"])
def test_a_tag_is_a_word(tag, finished, tmp_path):
    with pytest.raises(UserError, match="is no tag of weights; expected letters"):
        export_run(finished, tmp_path / "export", tag=tag)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_any_name_has_a_tag():
    assert default_tag(parse_args(["--dataset", "folder", "--data-dir", "/数据"])) == "data"


# Links in a run that someone else made


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/.unfinished", ".args.yaml", "export"])
def test_what_a_run_writes_stays_in_it(name, data, tmp_path, capsys):
    train_here(*flags(data, tmp_path))
    run, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("precious")
    if (run / name).exists():
        (run / name).rename(victim / "moved")
    (run / name).symlink_to(victim)
    before = contents(victim)
    with pytest.raises(UserError, match=rf"run/{re.escape(name)} is a link"):
        train_here("--resume", str(run), "--epochs", "2")
    assert run_command(["export", str(run), "--force"]) == 1
    assert f"run/{name} is a link" in capsys.readouterr().err
    assert contents(victim) == before


# One writer


HELD = "is in use by process {pid} on .+; wait for its end, or end it"


def test_a_run_that_is_held_is_left(data, tmp_path, capsys):
    train_here(*flags(data, tmp_path))
    run = tmp_path / "run"
    link = tmp_path / "link"
    link.symlink_to(run)
    before = contents(run)
    sentence = HELD.format(pid=os.getpid())
    with hold(run):
        for words in (
            flags(data, tmp_path, "--overwrite"),
            flags(data, tmp_path),
            ["--resume", str(run)],
            ["--resume", str(link)],
        ):
            with pytest.raises(UserError, match=sentence):
                train_here(*words)
        assert run_command(["export", str(run), "--force"]) == 1
        assert re.search(sentence, capsys.readouterr().err)
        assert run_command(["export", str(run), "-o", str(tmp_path / "elsewhere")]) == 0
        assert contents(run) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "link", "elsewhere"}
    train_here("--resume", str(run))


def test_a_run_is_held_to_the_end_of_its_export(data, tmp_path, monkeypatch):
    tried = []

    def exported(run, *args, **keywords):
        with pytest.raises(UserError, match="is in use by"), hold(run):
            pass
        tried.append(run)
        return export_run(run, *args, **keywords)

    monkeypatch.setattr("man_zoo.commands.train.export_run", exported)
    train_here(*flags(data, tmp_path, "--model-ema"))
    assert len(tried) == 2


def test_a_folder_is_exported_to_by_one(finished, tmp_path, capsys):
    folder = tmp_path / "export"
    with hold(folder):
        assert run_command(["export", str(finished), "-o", str(folder)]) == 1
    assert re.search(HELD.format(pid=os.getpid()), capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_replaced_meanwhile_is_not_gone_on_with(data, tmp_path):
    """Its flags were read before it was held."""
    train_here(*flags(data, tmp_path))
    run = tmp_path / "run"
    args = parse_args(["--resume", str(run), "--epochs", "2"])
    saved = yaml.safe_load((run / "args.yaml").read_text())
    (run / "args.yaml").write_text(yaml.safe_dump(saved | {"seed": 5}))
    before = contents(run)
    from man_zoo.commands.train import train_and_export

    with pytest.raises(UserError, match="goes on as the run began, with --seed 5, not 0"):
        train_and_export(args)
    assert contents(run) == before


@contextmanager
def training(*words: str, until: Path):
    """The recipe as a process, from when a file is there on."""
    command = [sys.executable, TRAIN, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=pipe, text=True
    ) as process:
        try:
            wait_for(until.exists, process)
            yield process
        finally:
            process.kill()


def wait_for(condition, process) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_trainer_holds_nothing(data, tmp_path):
    run = tmp_path / "run"
    words = flags(data, tmp_path, "--epochs", "100000", "--val-interval", "100000")
    with training(*words, until=run / "checkpoints" / "epoch-0001") as trainer:
        for more in (flags(data, tmp_path, "--overwrite"), ["--resume", str(run)]):
            with pytest.raises(UserError, match=HELD.format(pid=trainer.pid)):
                train_here(*more)
        assert trainer.poll() is None
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    done = load_log(run)[-1]["epoch"]
    again = train_here("--resume", str(run), "--epochs", str(done + 1))
    assert again["epochs"] == done + 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_of_starts_at_once_one_wins(data, tmp_path):
    command = [sys.executable, TRAIN, *flags(data, tmp_path, "--epochs", "3")]
    starts = [
        subprocess.Popen(
            [*command, "--seed", str(seed)],
            env=environment(), cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for seed in range(3)
    ]  # fmt: skip
    said = [start.communicate(timeout=PATIENCE)[1] for start in starts]
    won = [seed for seed, start in enumerate(starts) if start.returncode == 0]
    assert len(won) == 1, said
    for seed, stderr in enumerate(said):
        if seed not in won:
            assert re.search("run is (in use by process|there already)", stderr.splitlines()[-1])
            assert "Traceback" not in stderr
    assert read_args(tmp_path / "run").seed == won[0]
    assert [line["epoch"] for line in load_log(tmp_path / "run")] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_processes_that_start_together_are_told_together(data, tmp_path):
    with hold(tmp_path / "run"):
        refused = python(*TWO, TRAIN, *flags(data, tmp_path), check=False)
    assert refused.returncode == 1
    assert re.search(HELD.format(pid=os.getpid()), refused.stderr)
    assert refused.stderr.count("train.py: ") == 1
    python(*TWO, TRAIN, *flags(data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
