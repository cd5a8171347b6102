"""The house: imports go one way, files are short, and the wheel has every package."""

import tomllib

from importlinter.cli import lint_imports
from recipe import ROOT

PACKAGE = ROOT / "man_zoo"
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_imports_go_down(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_no_module_is_long() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 350} == {}


def test_every_package_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in MODULES}
    packages = {".".join(folder.parts) for folder in folders}
    assert packages == {name for name in settings["packages"] if not name.startswith("man_zoo._")}
