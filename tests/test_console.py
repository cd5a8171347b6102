"""How a command ends: one sentence, a status, and nothing half-written, whatever goes wrong."""

import errno
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import run_all
from recipe import environment
from safetensors import SafetensorError
from safetensors.torch import save_file

from man_zoo.console import UserError, exit_status, noted, whole, whole_folder

# Where the words go

TO_NOBODY = (["list"], ["list", "resnet20*"], ["--help"], ["sweep", "-h"])
WRONG = ["push", "nowhere", "--repo", "me/x", "--dry-run"]


@pytest.fixture(scope="module")
def ends() -> list[tuple[int, str]]:
    cases = [
        *((words, "") for words in TO_NOBODY),
        (WRONG, ""),
        (["list", "resnet20_d*"], "/dev/full"),
    ]
    return run_all(*cases)


def test_a_reader_who_has_gone_is_no_error(ends) -> None:
    assert ends[: len(TO_NOBODY)] == len(TO_NOBODY) * [(141, "")]


def test_a_sentence_does_not_need_a_reader_of_what_is_printed(ends) -> None:
    status, said = ends[-2]
    assert status == 1
    assert said.startswith("man-zoo push: nowhere has no model.safetensors")
    assert said.count("\n") == 1


def test_what_cannot_be_printed_is_a_sentence(ends) -> None:
    status, said = ends[-1]
    assert status == 1
    assert said.startswith("man-zoo list: No space left on device")
    assert said.count("\n") == 1


def test_nothing_to_print_to_is_no_error(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after ``>&-``
    assert exit_status("prog", lambda: print("unheard")) == 0


# What a disk refuses, in the words of whoever wrote to it


def write_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, path)


def write_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(100_000)}, path)


def write_bytes(path: Path) -> None:
    path.write_bytes(bytes(400_000))


WRITERS = (write_safetensors, write_torch, write_bytes)
LIMITED = """
import resource, signal, sys
from pathlib import Path
from test_console import WRITERS
from man_zoo.console import exit_status, whole, whole_folder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

def file(write):
    with whole(Path("file")) as path:
        write(path)

def in_a_folder(write):
    with whole_folder(Path("folder")) as path:
        write(path / "x")

for write in WRITERS:
    for place in (file, in_a_folder):
        assert exit_status(write.__name__, lambda: place(write)) == 1
"""


def test_a_file_that_cannot_be_finished_is_a_sentence_and_leaves_nothing(tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    places = [(write, place) for write in WRITERS for place in (".file", ".folder")]
    for line, (write, place) in zip(result.stderr.splitlines(), places, strict=True):
        assert line.startswith(f"{write.__name__}: {place}: ")
        assert line.endswith("; nothing half-written is left.")
    assert not list(tmp_path.iterdir())


def run(error: BaseException):
    def raising() -> None:
        raise error

    return lambda: exit_status("prog", raising)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("It is so."), "prog: It is so."),
        (OSError(errno.EROFS, "Read-only file system", "x"), "prog: x: Read-only file system."),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "prog: x: Permission denied."),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), "prog: x/y: Not a dir"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "prog: x: No such"),
        (OSError(errno.ENOSPC, "No space left on device"),
         "prog: No space left on device; nothing half-written is left."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(error, sentence, capsys) -> None:
    assert run(error)() == 1
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1


@pytest.mark.parametrize("ask", [torch.empty, np.empty, bytearray])
def test_too_little_memory_is_one_sentence(ask, capsys) -> None:
    assert exit_status("prog", lambda: ask(10**15)) == 1
    said = capsys.readouterr().err
    assert said.startswith("prog: there is not enough memory (")
    assert said.endswith("; a smaller batch needs less.\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError("shape mismatch"),
        SafetensorError("invalid header"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    ],
)
def test_a_bug_keeps_its_traceback(error) -> None:
    with pytest.raises(type(error)):
        run(error)()


def test_an_interrupted_command_says_how_to_go_on(capsys) -> None:
    def interrupted() -> None:
        with noted("--resume x goes on."):
            raise KeyboardInterrupt

    assert exit_status("prog", interrupted) == 130
    assert capsys.readouterr().err == "prog: interrupted; --resume x goes on.\n"
    assert run(KeyboardInterrupt())() == 130
    assert capsys.readouterr().err == "prog: interrupted.\n"


def test_a_note_is_for_what_came_from_outside(tmp_path, capsys) -> None:
    def full() -> None:
        with noted("--resume x goes on."):
            raise OSError(errno.ENOSPC, "No space left on device", "x/file")

    assert exit_status("prog", full) == 1
    said = capsys.readouterr().err
    assert said.startswith("prog: x/file: No space left on device; nothing half-written is left; ")
    assert said.endswith("--resume x goes on.\n")

    def too_early() -> None:
        with noted("--resume x goes on.", once=tmp_path / "args.yaml"):
            raise KeyboardInterrupt

    assert exit_status("prog", too_early) == 130
    assert capsys.readouterr().err == "prog: interrupted.\n"

    def wrong() -> None:
        with noted("--resume x goes on."):
            raise UserError("--lr is wrong.")

    assert exit_status("prog", wrong) == 1
    assert capsys.readouterr().err == "prog: --lr is wrong.\n"


def test_a_thread_that_meets_the_same_disk_is_silent(capsys) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def both() -> None:
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
        full()

    before = threading.excepthook
    assert exit_status("prog", both) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert threading.excepthook is before


def test_only_the_first_of_many_processes_speaks(capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(UserError("It is so."))() == 1
    assert not capsys.readouterr().err


def test_credentials_in_an_address_are_not_printed(capsys) -> None:
    run(UserError("https://user:secret@host/x failed, and http://token@other too."))()
    said = capsys.readouterr().err
    assert said == "prog: https://host/x failed, and http://other too.\n"


# Files that are whole or not there


def test_a_folder_that_is_interrupted_leaves_the_old_one(tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()

    def interrupted() -> None:
        with whole_folder(folder) as unfinished:
            (unfinished / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


def test_a_file_in_place_of_a_folder_is_an_error_that_names_it(tmp_path, capsys) -> None:
    (tmp_path / "file").touch()

    def below() -> None:
        with whole(tmp_path / "file" / "x") as path:
            path.write_text("x")

    assert exit_status("prog", below) == 1
    assert f"{tmp_path}/file/.x: Not a directory" in capsys.readouterr().err
