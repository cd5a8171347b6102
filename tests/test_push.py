"""Publishing through the real HfApi to a Hub on loopback, and what goes wrong on the way.

The last test runs the others with the other major version of huggingface-hub.
"""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from loopback_hub import TOKEN, USER, LoopbackHub, git, loopback_hub
from recipe import ROOT, environment

from man_zoo import weights
from man_zoo.commands.__main__ import main as run_command

TITLE = "resnet20_man_dgl_k4.digits"
MAJOR = int(huggingface_hub.__version__.split(".")[0])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with loopback_hub(tmp_path / "remote") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An index of the test's own, a token, no waiting between retries; the index's folder."""
    monkeypatch.setattr(weights, "HUB", tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain LFS, which loopback speaks
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "hub"


@pytest.fixture
def folder(tmp_path) -> Path:
    """An exported folder: that of the digits."""
    return Path(shutil.copytree(ROOT / "hub" / TITLE, tmp_path / "export"))


def push(folder: Path, *words: str) -> int:
    words = words if "--repo" in words else ("--repo", "me/digits", *words)
    return run_command(["push", str(folder), *words])


def test_a_push_publishes_the_folder_and_enters_it_into_the_index(hub, here, folder) -> None:
    assert push(folder) == 0
    published = hub.folder("me/digits")
    for name in ("model.safetensors", "config.json"):
        assert (published / name).read_bytes() == (folder / name).read_bytes()
    card = (published / "README.md").read_text()
    assert 'timm.create_model("hf-hub:me/digits", pretrained=True)' in card
    assert "FOLDER" not in card
    assert git(published, "rev-list", "--count", "main") == "2"  # one commit beside the Hub's own

    entry = weights.read_index()[TITLE]
    facts = json.loads((folder / "config.json").read_text())["man_zoo"]
    assert (entry.name, entry.tag, entry.metrics) == ("resnet20_man_dgl_k4", "digits",
        facts["metrics"])  # fmt: skip
    assert entry.repository == "me/digits"
    assert entry.revision == git(published, "rev-parse", "main")
    assert entry.sha256 == weights.sha256(published / "model.safetensors")
    assert (here / TITLE / "README.md").read_text() == card
    assert not hub.private["me/digits"]


def test_an_installed_package_publishes_and_is_not_written_into(
    hub, here, folder, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(weights, "PACKAGE", here.parent)
    assert push(folder) == 0
    assert (hub.folder("me/digits") / "model.safetensors").is_file()
    assert "index" not in capsys.readouterr().out
    assert not here.exists()


def test_a_private_repository(hub, folder) -> None:
    assert push(folder, "--private") == 0
    assert hub.private["me/digits"]


def test_a_dry_run_asks_nobody(hub, here, folder, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(folder, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    size = (folder / "model.safetensors").stat().st_size
    assert lines[0].split() == [f"{size:,}", "bytes", "me/digits/model.safetensors"]
    assert [line.split("/")[-1] for line in lines[1:]] == ["config.json", "README.md"]
    assert not hub.requests
    assert not here.exists()


def test_a_repository_that_is_there_needs_update(hub, here, folder, capsys) -> None:
    assert push(folder) == 0
    first = weights.read_index()
    (folder / "model.safetensors").write_bytes(b"another")
    assert push(folder) == 1
    assert "me/digits is taken already; choose another --repo" in capsys.readouterr().err
    assert weights.read_index() == first
    assert push(folder, "--update") == 0
    assert (hub.folder("me/digits") / "model.safetensors").read_bytes() == b"another"
    assert weights.read_index() != first


def test_a_branch_leaves_main_alone(hub, folder) -> None:
    assert push(folder) == 0
    published = hub.folder("me/digits")
    main = git(published, "rev-parse", "main")
    (folder / "model.safetensors").write_bytes(b"on a branch")
    assert push(folder, "--revision", "v2") == 0
    assert weights.read_index()[TITLE].revision == git(published, "rev-parse", "v2") != main
    assert git(published, "rev-parse", "main") == main


def test_a_proposal_is_not_in_the_index_until_it_is_merged(hub, here, folder, capsys) -> None:
    assert push(folder) == 0
    published, before = hub.folder("me/digits"), weights.read_index()
    main, card = git(published, "rev-parse", "main"), (here / TITLE / "README.md").read_text()
    (folder / "model.safetensors").write_bytes(b"as a proposal")
    capsys.readouterr()
    assert push(folder, "--create-pr") == 0
    said = capsys.readouterr().out
    assert f"{hub.endpoint}/me/digits/discussions/1" in said
    assert "not in the index until it is merged" in said
    assert f"man-zoo push {folder} --repo me/digits --update" in said
    assert git(published, "rev-parse", "main") == main
    assert weights.read_index() == before
    assert (here / TITLE / "README.md").read_text() == card

    git(published, "merge", "--quiet", "pr/1")
    assert push(folder, "--update") == 0
    merged = git(published, "rev-parse", "pr/1")
    assert weights.read_index()[TITLE].revision == merged == git(published, "rev-parse", "main")
    assert weights.read_index()[TITLE].sha256 == weights.sha256(folder / "model.safetensors")


FAULTS = {
    "401": ("create", 401, "does not accept the token; log in anew with `hf auth login`"),
    "403": ("create", 403, "The token may not write to me/digits; use one that may"),
    "403 at the commit": ("commit", 403, "The token may not write to me/digits; use one that may"),
    "409": ("create", 409, "me/digits is taken already; choose another --repo"),
    "500": ("create", 500, "failed with status 500; nothing was published, push again later."),
    "500 at the commit": ("commit", 500, "status 500; nothing was published, push again later."),
    "500 at the upload": ("/lfs/", 500, "status 500; nothing was published, push again later."),
    "cut": ("create", "cut", "nothing was published, check the network and push again."),
    "cut in mid-upload": ("/lfs/", "cut", "nothing was published, check the network and push"),
    "cut at the commit": ("commit", "cut", "nothing was published, check the network and push"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_publishes_nothing(fault, hub, here, folder, capsys) -> None:
    part, answer, sentence = FAULTS[fault]
    hub.faults[part] = answer
    assert push(folder) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("man-zoo push: ")
    assert sentence in error
    assert not hub.folder("me/digits").exists()
    assert not here.exists()


@pytest.mark.parametrize("fault", ["500 at the commit", "cut in mid-upload"])
def test_a_fault_leaves_what_was_published_before(fault, hub, folder) -> None:
    assert push(folder) == 0
    published, before = hub.folder("me/digits"), weights.read_index()
    main = git(published, "rev-parse", "main")
    part, answer, _ = FAULTS[fault]
    hub.faults[part] = answer
    (folder / "model.safetensors").write_bytes(b"another")
    assert push(folder, "--update") == 1
    assert git(published, "rev-parse", "main") == main
    assert weights.read_index() == before


@pytest.fixture
def heeds_ctrl_c():
    """What a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_push_publishes_nothing(hub, here, folder, heeds_ctrl_c, capsys) -> None:
    hub.faults["/lfs/"] = "Ctrl-C"
    assert push(folder) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "man-zoo push: interrupted."
    assert not hub.folder("me/digits").exists()
    assert not here.exists()


def test_an_index_that_cannot_be_written_is_no_reason_to_publish_twice(
    hub, here, folder, capsys
) -> None:
    here.parent.mkdir(exist_ok=True)
    here.touch()  # a file in place of the folder
    assert push(folder) == 1
    said = capsys.readouterr().err
    assert f"{here}" in said
    assert f"published as {hub.endpoint}/me/digits/commit/" in said
    here.unlink()
    assert push(folder, "--update") == 0
    assert git(hub.folder("me/digits"), "rev-list", "--count", "main") == "2"
    assert TITLE in weights.read_index()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What huggingface_hub logs."""
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("huggingface_hub").addHandler(handler)
    yield handler.stream
    logging.getLogger("huggingface_hub").removeHandler(handler)


@pytest.mark.parametrize("fault", [500, "cut"])
@pytest.mark.parametrize("part", ["create", "/lfs/", "commit"])
def test_credentials_in_the_endpoint_are_not_printed(
    part, fault, hub, folder, log, capfd, monkeypatch
) -> None:
    endpoint = hub.endpoint.replace("://", f"://{USER}@")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(LoopbackHub, "endpoint", endpoint)  # also where it sends uploads to
    assert push(folder, "--dry-run") == 0
    hub.faults[part] = fault
    assert push(folder) == 1
    hub.faults.clear()
    assert push(folder) == 0
    printed = capfd.readouterr()
    assert ("thrown while requesting" in log.getvalue()) == (part == "/lfs/")
    assert "secret" not in printed.out + printed.err + log.getvalue()


def test_an_empty_repository_that_cannot_be_deleted_is_named(hub, folder, capsys) -> None:
    hub.faults |= {"commit": 500, "delete": 403}
    assert push(folder) == 1
    assert "The new, empty repository me/digits remains." in capsys.readouterr().err


def no_token(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    monkeypatch.delenv("HF_TOKEN")
    return "The Hub needs a token; log in with `hf auth login` or set HF_TOKEN."


def wrong_token(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    return "does not accept the token"


def no_network(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return "The connection to http://127.0.0.1:9 failed or broke off"


def no_export(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    (folder / "model.safetensors").unlink()
    return "has no model.safetensors; expected a folder of `man-zoo export`."


def foreign_export(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    return "is not man_zoo's; expected a folder of `man-zoo export`."


def bad_card(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    (folder / "README.md").write_text("---\ntags: []\n---\n")
    return "The Hub refuses the push: Invalid metadata in README.md. - no license"


def no_folder(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    shutil.rmtree(folder)
    folder.touch()
    return "export has no model.safetensors; expected a folder of `man-zoo export`."


def no_json(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    (folder / "config.json").write_bytes(b"\xff{")
    return "config.json is not man_zoo's; expected a folder of `man-zoo export`."


def half_a_config(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    (folder / "config.json").write_text('{"man_zoo": {"name": "resnet20_man_dgl_k4"}}')
    return "config.json is not man_zoo's; expected a folder of `man-zoo export`."


def no_text(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    (folder / "README.md").write_bytes(b"\xff")
    return "README.md is no text; expected a folder of `man-zoo export`."


def broken_index(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    index = weights.HUB = folder.parent / "broken"
    index.mkdir()
    (index / "index.json").write_text("[{]")
    return "broken/index.json is no index of weights"


def linked_weights(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    return link(folder, "model.safetensors")


def linked_card(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    return link(folder, "README.md")


def linked_config(hub: LoopbackHub, folder: Path, monkeypatch) -> str:
    return link(folder, "config.json")


def link(folder: Path, name: str) -> str:
    elsewhere = folder.parent / "id_rsa"
    shutil.move(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    return f"{folder / name} is a link to {elsewhere}; expected the file itself"


MISTAKES = (
    *(no_token, wrong_token, no_network, no_folder, no_export, foreign_export, no_json),
    *(half_a_config, bad_card, no_text, broken_index, linked_weights, linked_card, linked_config),
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake, hub, here, folder, capsys, monkeypatch) -> None:
    sentence = mistake(hub, folder, monkeypatch)
    assert push(folder) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.splitlines()[-1].startswith("man-zoo push: ")
    assert not hub.folder("me/digits").exists()
    assert not here.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--repo", "others/digits"), "The token may not write to others/digits"),
        (("--repo", "me/a/b"), "--repo me/a/b: expected ORG/NAME"),
        (("--update",), "There is no me/digits that the token can see"),
        (("--create-pr", "--revision", "v2"), "leave --revision out"),
    ],
)
def test_flags_that_cannot_be_honoured(words, sentence, hub, here, folder, capsys) -> None:
    assert push(folder, *words) == 1
    assert sentence in capsys.readouterr().err
    assert not here.exists()


@pytest.mark.slow
@pytest.mark.skipif("HUB_MATRIX" in os.environ, reason="runs inside the matrix")
def test_the_other_major_version_of_huggingface_hub(request) -> None:
    other = {1: 2, 2: 1}[MAJOR]
    library = request.config.cache.mkdir(f"huggingface-hub-{other}")
    if not (library / "huggingface_hub").is_dir():
        wanted = f"huggingface-hub>={other},<{other + 1}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(library), wanted]
        installed = subprocess.run(pip, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"the registry has no {wanted}: {installed.stderr.strip()[-200:]}")
    paths = os.pathsep.join([str(library), environment()["PYTHONPATH"]])
    shows = f"import huggingface_hub as h; assert h.__version__[0] == '{other}', h.__version__"
    tests = f"import pytest; raise SystemExit(pytest.main({['-q', '-o', 'addopts=', __file__]}))"
    result = subprocess.run(
        [sys.executable, "-c", f"{shows}; {tests}"],
        env=environment() | {"PYTHONPATH": paths, "HUB_MATRIX": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout
