"""The house: imports go one way, files are short, and the wheel has every package."""

import subprocess
import sys
import tomllib

from recipe import ROOT

PACKAGE = ROOT / "man_zoo"
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_imports_go_down() -> None:
    # In a process of its own: import-linter turns off every logger that is there.
    words = [sys.executable, "-c", "from importlinter.cli import *; lint_imports_command()"]
    done = subprocess.run([*words, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_is_long() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 350} == {}


def test_every_package_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in MODULES}
    packages = {".".join(folder.parts) for folder in folders}
    assert packages == {name for name in settings["packages"] if not name.startswith("man_zoo._")}
