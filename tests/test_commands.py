"""Every command with wrong words, files and folders: one sentence, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from recipe import flags, train_here, write_images

import man_zoo
from man_zoo.commands.__main__ import COMMANDS
from man_zoo.commands.__main__ import main as run_command
from man_zoo.results.records import read_results


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A finished run, with its data beside it."""
    place = tmp_path_factory.mktemp("original")
    train_here(*flags(write_images(place / "data"), place, "--no-channels-last"))
    return place / "run"


@pytest.fixture
def run(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "run", symlinks=True)


@pytest.fixture
def sentence(capsys, tmp_path, monkeypatch):
    """Run a command that cannot do what is asked, in an empty folder; what it says of that."""
    monkeypatch.chdir(tmp_path)

    def say(*words: object) -> str:
        before = listed(tmp_path)
        capsys.readouterr()
        assert run_command([str(word) for word in words]) == 1
        printed = capsys.readouterr()
        lines = [line for line in printed.err.split("\n") if line.startswith("man-zoo")]
        assert printed.err.rstrip().endswith(lines[-1])
        assert len(lines) == 1
        assert not printed.out
        assert listed(tmp_path) == before
        program = f"man-zoo {words[0]}: " if words and words[0] in COMMANDS else "man-zoo: "
        assert lines[0].startswith(program)
        return lines[0].removeprefix(program)

    return say


def listed(folder: Path) -> dict[Path, int]:
    """What is in there; without folders, whose times a lock beside a run changes."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# The command itself


def test_without_words_it_says_what_there_is(capsys) -> None:
    assert run_command([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert run_command(["--help"]) == 0
    assert capsys.readouterr().out == said


def test_version(capsys) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"man-zoo {man_zoo.__version__}\n"


@pytest.mark.parametrize("word", ["trian", "Train", "evalute", ""])
def test_another_command_is_told_the_nearest(word, sentence) -> None:
    said = sentence(word)
    assert said.startswith(f"Unknown command {word!r}; expected train, finetune, ")
    if word:
        assert f"The nearest is {word.lower()[:2]}" in said.replace("'", "")


def test_a_flag_of_no_command(sentence) -> None:
    assert sentence("--colour") == "unrecognized arguments: --colour."


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_refuses_other_flags(command, capsys) -> None:
    assert run_command([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: man-zoo {command} ")
    if command != "sweep":  # which hands them on
        assert run_command([command, "--colour", "red"]) == 1
        assert capsys.readouterr().err.count("\n") == 1


# Files that are not what they are taken for

NO_RUN = "there is no run"
WRONG_PLACES = ("nowhere", "file", "folder", "", "file/below", "x" * 300)


@pytest.fixture
def places(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()


@pytest.mark.parametrize("place", WRONG_PLACES[:4])  # of the others the system says what is wrong
def test_what_is_no_run(place, places, sentence) -> None:
    for command in ("export", "analyse", "curves"):
        assert NO_RUN in sentence(command, place)
    if place:
        assert NO_RUN in sentence("train", "--resume", place)
    assert "has no model.safetensors" in sentence("push", place, "--repo", "me/x", "--dry-run")


@pytest.mark.parametrize("place", WRONG_PLACES[:5])
def test_what_is_no_config_or_sweep(place, places, sentence) -> None:
    for words in (["sweep", place], ["train", "-c", place], ["finetune", "--config", place]):
        said = sentence(*words)
        expected = {"file": "file is not YAML: "}.get(place, f"Unknown {said.split()[1]} ")
        assert said.startswith(expected)


def test_what_is_no_model(places, sentence) -> None:
    for command in ("plan", "benchmark", "evaluate"):
        said = sentence(command, "resnet20_man_dlg_k4")
        assert said.startswith("Unknown model 'resnet20_man_dlg_k4'; expected one of ")
        assert "The nearest is 'resnet20_man_dgl_k4'." in said or "The nearest is 'resn" in said
    for name in ("local-dir:nowhere", "local-dir:file", "local-dir:folder", "folder/file"):
        assert sentence("evaluate", name)
        assert sentence("train", "--model", name)


RUN_FILES = {
    "args.yaml": ("export", "evaluate", "analyse", "train"),
    "metadata.json": ("export", "evaluate", "analyse"),
    "log.jsonl": ("export", "train", "curves"),
}
BROKEN = (b"", b"\xff\xfe", b"[", b"3", b"[3]\n", b'{"data": 3}\n')


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("file", RUN_FILES)
def test_a_run_whose_files_are_broken(file, broken, run, sentence) -> None:
    (run / file).write_bytes(broken)
    last = {
        "export": ["export", run, "--output", "export"],
        "evaluate": ["evaluate", run],
        "analyse": ["analyse", run, "--batch-size", "2"],
        "train": ["train", "--resume", run, "--epochs", "2"],
        "curves": ["curves", run],
    }
    if file == "args.yaml" and broken == b"":
        pytest.skip("no flags are the defaults")
    for command in RUN_FILES[file]:
        if command == "train" and file == "log.jsonl" and broken in (b"", b"[", b"3"):
            continue  # a line that a kill cut short is no damage
        said = sentence(*last[command])
        assert str(run) in said


def test_a_folder_in_place_of_a_file_of_a_run(run, sentence) -> None:
    for file in ("args.yaml", "metadata.json", "log.jsonl"):
        kept = (run / file).read_bytes()
        (run / file).unlink()
        (run / file).mkdir()
        assert str(run) in sentence("export", run, "--output", "export")
        (run / file).rmdir()
        (run / file).write_bytes(kept)


@pytest.mark.parametrize("broken", [b"", b"\xff", b"{}", b"[]", b'{"architecture": 3}'])
def test_an_export_whose_config_is_broken(broken, run, sentence) -> None:
    (run / "export" / "config.json").write_bytes(broken)
    assert sentence("evaluate", run / "export")
    assert "expected a folder of `man-zoo export`" in sentence(
        "push", run / "export", "--repo", "me/x", "--dry-run"
    )


def test_places_that_cannot_be_written_to(run, places, sentence) -> None:
    for output in ("file", "file/below"):
        assert "file" in sentence("export", run, "--output", output)
        assert "file" in sentence("analyse", run, "--output", output)
        assert "file" in sentence("train", "--output", output)
        assert "argument --json: expected a file in a folder that is there" in sentence(
            "benchmark", "resnet20_dgl_k4", "--json", f"{output}/x.json"
        )
        assert "argument --picture: expected a file in a folder that is there" in sentence(
            "plan", "resnet20_dgl_k4", "--compare", "--picture", f"{output}/x.png"
        )
        assert "argument --picture: expected a file in a folder that is there" in sentence(
            "curves", run, "--picture", f"{output}/x.png"
        )


# Sweeps

RESULTS = (b"3\n", b"[", b"\xff\n", b"{}\n", b'{"name": "x"}\n', b"\n")


@pytest.fixture
def sweep(tmp_path, original) -> Path:
    """A sweep of one run, which stands finished in ``runs``."""
    shutil.copytree(original, tmp_path / "runs" / "base-seed0", symlinks=True)
    saved = yaml.safe_load((original / "args.yaml").read_text())
    elsewhere = ("output", "experiment", "seed")
    values = {key: value for key, value in saved.items() if key not in elsewhere}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"results": "out.jsonl", "runs": [{"config": "base.yaml"}]}))
    return path


@pytest.mark.parametrize("text", RESULTS)
def test_results_that_are_none(text, sweep, sentence) -> None:
    sweep.with_name("out.jsonl").write_bytes(text)
    assert sentence("sweep", sweep).startswith(f"{sweep.with_name('out.jsonl')} is no results: ")


def test_a_folder_in_place_of_results(sweep, sentence) -> None:
    sweep.with_name("out.jsonl").mkdir()
    assert sentence("sweep", sweep) == f"{sweep.with_name('out.jsonl')}: Is a directory."


@pytest.mark.parametrize("text", [b"{}", b"[", b'{"model": "x"}', b"[]"])
def test_a_summary_that_is_none_fails_its_run_alone(text, sweep, capsys) -> None:
    run = sweep.parent / "runs" / "base-seed0"
    (run / "summary.json").write_bytes(text)
    assert run_command(["sweep", str(sweep), "--output", str(run.parent)]) == 1
    printed = capsys.readouterr()
    assert "base-seed0: " in printed.out
    assert "is damaged" in printed.out
    assert printed.err.splitlines()[-1].endswith("1 of 1 runs failed: base-seed0.")


def test_a_sweep_that_is_done_is_written_down(sweep) -> None:
    assert run_command(["sweep", str(sweep), "--output", str(sweep.parent / "runs")]) == 0
    [line] = read_results(sweep.with_name("out.jsonl"))
    assert list(line)[:3] == ["name", "seed", "model"]
    assert json.dumps(line)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"runs": [{"config": "base.yaml", "name": "a/b"}]}, "argument --experiment: expected the"),
        ({"runs": [{"config": "base.yaml", "seeds": ["a"]}]}, "argument --seed: expected a whole"),
        ({"runs": [{"config": "base.yaml", "seeds": [-1]}]}, "argument --seed: expected a whole"),
        ({"runs": [{"config": 3}]}, "config is a text, not 3"),
        ({"runs": 3}, "runs is a list, not 3"),
        ({"over": [3]}, "Unknown config"),
        ({"over": ["."]}, "Unknown config"),
        ({"results": None}, "results is a text, not None"),
    ],
)
def test_a_sweep_file_that_is_wrong(values, said, sweep, sentence) -> None:
    whole = {"results": "out.jsonl", "runs": [{"config": "base.yaml"}]}
    sweep.write_text(yaml.safe_dump(whole | values))
    assert said in sentence("sweep", sweep, "--output", "other")
