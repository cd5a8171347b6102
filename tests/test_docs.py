"""Pages of the documentation, run as their reader would: from top to bottom, in an empty folder.

Blocks of ``python`` and ``sh`` are run. Python blocks in a row are one session, which a command
ends.
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe import ROOT, environment

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial", "concepts", "extend"])
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text())
    assert blocks
    for language, session in itertools.groupby(blocks, key=lambda block: block[0]):
        text = "\n".join(code for _, code in session)
        program = [sys.executable] if language == "python" else ["bash", "-eux"]
        result = subprocess.run(
            [*program, "-"],
            input=text,
            env=reader(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, text + result.stdout + result.stderr


def reader() -> dict[str, str]:
    """The environment of someone who has installed man_zoo: its commands are on the path."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment() | {"PATH": commands}
