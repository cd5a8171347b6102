"""The documentation: its pages run, its commands are understood, its links lead somewhere."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from recipe import ROOT, environment

import man_zoo
from man_zoo.runs.flags import build_parser
from man_zoo.runs.recipes import find_config

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
RUN = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^(?:man-zoo |torchrun .*-m man_zoo\.commands\.)((?:.*\\\n)*.*)$", re.MULTILINE
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial", "concepts", "extend"])
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    """As its reader would run it: from top to bottom, in an empty folder.

    Blocks of ``python`` and ``sh`` are run. Python blocks in a row are one session.
    """
    blocks = RUN.findall((ROOT / "docs" / f"{page}.md").read_text())
    assert blocks
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, session in itertools.groupby(blocks, key=lambda block: block[0]):
        text = "\n".join(code for _, code in session)
        program = [sys.executable] if language == "python" else ["bash", "-eux"]
        result = subprocess.run(
            [*program, "-"],
            input=text,
            env=environment() | {"PATH": commands},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, text + result.stdout + result.stderr


def documented() -> list[str]:
    """Every command of man_zoo's in a page, on one line, without its comment."""
    found = {
        " ".join(shlex.split(words.replace("\\\n", " "), comments=True))
        for page in PAGES
        for words in COMMAND.findall(page.read_text())
    }
    return sorted(words for words in found if words and "$" not in words and "..." not in words)


@pytest.mark.parametrize("words", documented())
def test_a_command_is_understood(words: str) -> None:
    name, *flags = words.split()
    if name in ("train", "finetune"):
        args = build_parser().parse_args(flags)
        assert all(find_config(config).is_file() for config in args.config)
    elif name == "sweep":
        import_module("man_zoo.commands.sweep").parse_args(flags)
    else:
        import_module(f"man_zoo.commands.{name}").build_parser().parse_args(flags)


def test_the_version_is_said_alike() -> None:
    version = man_zoo.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    released = re.findall(r"^## \[(\d.*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        file, _, heading = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
