"""The wheel, built and installed into an empty folder, and used from there without a checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from recipe import ROOT

import man_zoo

pytestmark = pytest.mark.slow

DIGITS, ELSEWHERE = "resnet20_man_dgl_k4.digits", "resnet20_e2e_k1.cifar10_jpeg"
SMALL = ("--dataset", "digits", "--img-size", "8", "--cpu-threads", "1", "--warmup-epochs", "0")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where pip has installed the wheel."""
    sources, wheels, target = (tmp_path_factory.mktemp(name) for name in ("src", "whl", "lib"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("man_zoo", "hub", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", str(wheels), str(sources)], check=True)
    (wheel,) = wheels.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    return target


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """The folder that everything is run in."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def run(installed, empty):
    """Run a program on the wheel alone; it must succeed unless ``status`` says otherwise."""
    environment = os.environ | {"PYTHONPATH": str(installed), "ACCELERATE_USE_CPU": "true"}

    def call(*words: str, status: int = 0) -> subprocess.CompletedProcess:
        result = subprocess.run(
            [sys.executable, "-P", *words],
            env=environment,
            cwd=empty,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result

    return call


@pytest.fixture(scope="module")
def command(installed) -> str:
    """The ``man-zoo`` that pip has made."""
    return str(installed / "bin" / "man-zoo")


@pytest.fixture(scope="module")
def trained(run, command, empty) -> Path:
    """A run on the digits."""
    words = ("--experiment", "digits", "--epochs", "1", "--model-kwargs", "head=narrow")
    run(command, "train", *SMALL, *words)
    return empty / "runs" / "digits"


def test_the_command_is_the_wheels(run, command, installed) -> None:
    assert run(command, "--version").stdout == f"man-zoo {man_zoo.__version__}\n"
    assert (installed / "man_zoo" / "py.typed").is_file()


def test_a_config_is_found_by_its_name(run, command, empty) -> None:
    words = ("--experiment", "named", "--epochs", "1", "--train-subset", "16", "-b", "16")
    run(command, "train", "-c", "cifar10/resnet32_dgl_k16", *SMALL, *words)
    flags = yaml.safe_load((empty / "runs" / "named" / "args.yaml").read_text())
    assert flags["model"] == "resnet32_dgl_k16"
    assert flags["opt_kwargs"] == {"nesterov": True}


USES = f"""
import timm, man_zoo
from pathlib import Path
from man_zoo.commands.__main__ import main
from man_zoo.results.sweep import read_sweep
from man_zoo.runs.recipes import find_sweep

print(man_zoo.__file__)
assert main(["list", "--pretrained"]) == 0
assert main(["plan", "resnet20", "--k", "3", "--batch-size", "8"]) == 0
assert main(["export", "runs/digits", "--output", "exported"]) == 0
print(read_sweep(find_sweep("cifar10_short"), Path("runs"), [])[0])
model = timm.create_model("{DIGITS}", pretrained=True)
print(model.pretrained_cfg["label_names"])
untrained = timm.create_model("{ELSEWHERE}")
print(untrained.num_classes, timm.is_model_pretrained("{ELSEWHERE}"))
try:
    timm.create_model("{ELSEWHERE}", pretrained=True)
except RuntimeError as error:
    print(error)
"""


def test_it_trains_plans_exports_lists_and_loads_what_it_carries(
    run, trained, installed, empty
) -> None:
    assert json.loads((trained / "summary.json").read_text())["epochs"] == 1
    said = run("-c", USES).stdout.splitlines()
    assert Path(said[0]) == installed / "man_zoo" / "__init__.py"
    assert said[1] == f"{DIGITS}  99.17 %  here"
    assert any(line.startswith('man_zoo.localize("resnet20", "man_dgl", k=3') for line in said)
    config = json.loads((empty / "exported" / "config.json").read_text())
    assert config["man_zoo"]["name"] == "resnet20_man_dgl_k4"
    assert said[-4:] == [
        "runs/cifar10_short.jsonl",  # and not inside the package
        str([str(digit) for digit in range(10)]),
        "10 False",
        f"The weights of {ELSEWHERE} are not in this installation and not on the Hub yet: they "
        f"are hub/{ELSEWHERE}/model.safetensors in a checkout of man_zoo. Use one (pip install "
        "-e .), or train them: man-zoo train --model resnet20_e2e_k1.",
    ]
