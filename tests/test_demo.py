"""``make demo``, as far as it can be run shorter."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from recipe import ROOT, environment


@pytest.mark.slow
def test_the_demo_says_nothing_but_its_own(tmp_path: Path) -> None:
    dry = ["make", "--no-print-directory", "-n", "-o", ".venv/installed", "demo"]
    said = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    launcher, *words = shlex.split(said)
    command = Path(sys.executable).parent / Path(launcher).name
    short = ["--epochs", "1", "--train-subset", "64", "--img-size", "8", "--cpu-threads", "1"]
    result = subprocess.run(
        [str(command), *words, *short, "--output", str(tmp_path / "runs")],
        env=environment() | {"HF_HOME": str(tmp_path)},  # without an accelerate config of one's own
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "local-dir:" in result.stdout
    bar = re.compile(r"epoch 1: .*%\|.*update.*\]")
    assert [line for line in result.stderr.splitlines() if not bar.fullmatch(line)] == []
