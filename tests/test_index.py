"""An index of weights that cannot be read: all that needs none works, the rest says so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recipe import ROOT, environment

from man_zoo import weights
from man_zoo.commands.__main__ import main as run_command
from man_zoo.weights import BrokenIndexError, read_index

TITLE = "resnet20_man_dgl_k4.digits"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An index of one entry."""
    shutil.copytree(ROOT / "hub" / TITLE, tmp_path / "hub" / TITLE)
    entries = json.loads((ROOT / "hub" / "index.json").read_text())
    own = [entry for entry in entries if f"{entry['name']}.{entry['tag']}" == TITLE]
    (tmp_path / "hub" / "index.json").write_text(json.dumps(own))
    monkeypatch.setattr(weights, "HUB", tmp_path / "hub")
    assert list(read_index()) == [TITLE]
    return tmp_path / "hub"


def entry(**values: object) -> bytes:
    whole = {"name": "resnet20_man_dgl_k4", "tag": "digits", "sha256": "0", "size": 1}
    return json.dumps([whole | {"metrics": {"top1": 1.0}} | values]).encode()


BROKEN = {
    "cut short": b'[{"name": ',
    "no text": b"\xff\xfe",
    "empty": b"",
    "a mapping": b"{}1",
    "a number": b"3",
    "numbers": b"[3]",
    "an entry of nothing": b"[{}]",
    "a key too many": entry(colour="red"),
    "no zoo name": entry(name="../victim"),
    "a name that is a number": entry(name=3),
    "no accuracy": entry(metrics={}),
    "an accuracy that is none": entry(metrics={"top1": None}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_index_is_a_sentence(text, hub, capsys) -> None:
    (hub / "index.json").write_bytes(text)
    with pytest.raises(BrokenIndexError, match=r"hub/index.json is no index of weights") as error:
        read_index()
    assert "\n" not in str(error.value)
    assert run_command(["list", "--pretrained"]) == 1
    assert capsys.readouterr().err == f"man-zoo list: {error.value}\n"
    assert run_command(["list", "resnet20_dgl*"]) == 0


def test_a_folder_in_its_place_is_a_sentence(hub) -> None:
    (hub / "index.json").unlink()
    (hub / "index.json").mkdir()
    with pytest.raises(BrokenIndexError, match=r"hub/index.json is no index of weights"):
        read_index()


@pytest.mark.parametrize("text", [None, b"", b"[]", b"{}", b"\xff"])
def test_a_broken_config_of_an_entry_is_a_sentence(text, hub) -> None:
    config = hub / TITLE / "config.json"
    config.unlink()
    if text is not None:
        config.write_bytes(text)
    with pytest.raises(BrokenIndexError, match=f"{TITLE}/config.json is no index of weights"):
        read_index()


def test_no_index_is_an_empty_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    assert read_index() == {}


USE = """
import os
import timm

for name in ("index.json", "resnet20_man_dgl_k4.digits/config.json"):
    file = os.path.join("hub", name)
    before = open(file).read()
    if os.fork():
        status = os.waitstatus_to_exitcode(os.wait()[1])
        assert status == 0, (name, status)
        open(file, "w").write(before)
        continue
    open(file, "w").write("{")
    import man_zoo
    from man_zoo.commands.__main__ import main

    assert man_zoo.__file__.startswith(os.getcwd())
    assert timm.create_model("resnet20_man_dgl_k4").num_classes
    for named in ("resnet20_man_dgl_k4", "resnet20_man_dgl_k4.digits"):
        try:
            timm.create_model(named, pretrained=True)
        except RuntimeError as error:
            assert f"{name} is no index of weights" in str(error), error
        else:
            raise AssertionError(named)
    assert main(["list", "resnet20_dgl*"]) == 0
    assert main(["plan", "resnet20_dgl_k4", "--batch-size", "8"]) == 0
    assert main(["list", "--pretrained"]) == 1
    assert main(["evaluate", "resnet20_man_dgl_k4.digits"]) == 1
    assert main(["train", "--pretrained", "--output", "runs"]) == 1
    assert not os.path.exists("runs")
    os._exit(0)
"""


def test_importing_needs_no_index(tmp_path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("man_zoo", "hub"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
    result = subprocess.run(
        [sys.executable, "-c", USE],
        env=environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'tests'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("man-zoo")]
    assert len(said) == 2 * 3
    assert all("is no index of weights" in line for line in said)
