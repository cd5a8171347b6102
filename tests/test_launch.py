"""The files in ``recipes/launch``: launchers take them, and man-zoo their flags."""

import os
import platform
import re
import shlex
import subprocess
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from recipe import ROOT
from torch.distributed.run import get_args_parser

from man_zoo.runs.config import parse_args

LAUNCH = ROOT / "recipes" / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
SCRIPTS = sorted({*LAUNCH.iterdir()} - {*CONFIGS})
COMMAND = re.compile(r"^#   ((?:.*\\\n#)*.*)", re.MULTILINE)
# On a machine without SLURM and GPUs: programs that say how they were called.
TORCHRUN = 'printf "%s\\n" torchrun "$@" >> calls\nexit "${STATUS:-0}"\n'
SRUN = 'while [ "$1" != torchrun ]; do shift; done\n"$@"\n'
SCONTROL = 'echo "$@" > requeued\n'


def commands(path: Path) -> list[list[str]]:
    """Those in a file's comments, in words."""
    found = [text.replace("\\\n#", " ") for text in COMMAND.findall(path.read_text())]
    return [shlex.split(text) for text in found]


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_accelerate_takes_a_config(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    (command,) = commands(path)
    assert command[:2] == ["accelerate", "launch"]
    args = launch_command_parser().parse_args(command[2:])
    assert load_config_from_file(args.config_file) == config
    assert args.training_script == "recipes/train.py"
    assert Path(args.training_script).is_file()
    assert parse_args(args.training_script_args).data_dir == "PATH"


def run(folder: Path, path: Path, *words: str, **variables: str) -> int:
    """Run a script where torchrun says how it was called; the script's status."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for program, text in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / program).write_text(f"#!/usr/bin/env bash\n{text}")
        (programs / program).chmod(0o755)
    search = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", str(path), *words]
    environment = os.environ | search | variables
    return subprocess.run(script, cwd=folder, env=environment, check=False).returncode


def called(folder: Path) -> tuple[Namespace, list[str]]:
    """How torchrun was, and the flags of training."""
    program, *words = (folder / "calls").read_text().splitlines()
    assert program == "torchrun"
    launch = get_args_parser().parse_args(words)
    assert launch.module
    assert launch.training_script == "man_zoo.commands.train"
    return launch, launch.training_script_args


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_is_one_of_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) is (path.suffix == ".sh")


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_commands_in_comments_are_understood(path):
    for program, *words in commands(path):
        if program == "man-zoo":
            import_module(f"man_zoo.commands.{words[0]}").build_parser().parse_args(words[1:])
        else:
            assert str(path).endswith(words[0] if program == "sbatch" else program)


@pytest.mark.parametrize(
    ("script", "places", "nodes", "flags"),
    [
        ("block_parallel", [], "1:1", {"block_parallel": 4, "lr": 0.05}),
        ("block_and_data_parallel", [], "1:1", {"block_parallel": 2, "lr": 0.1}),
        ("sharded", [], "1:1", {"fsdp": True, "lr": 5e-4}),
        ("two_machines", ["first"], "2", {"lr": 0.4}),
    ],
)
def test_a_script_launches_four_processes_a_machine(script, places, nodes, flags, tmp_path):
    assert run(tmp_path, LAUNCH / f"{script}.sh", *places, "a folder", "--epochs", "20") == 0
    launch, words = called(tmp_path)
    assert (launch.nproc_per_node, launch.nnodes) == ("4", nodes)
    assert launch.rdzv_endpoint == "".join(f"{place}:29500" for place in places)
    args = parse_args(words)
    assert (args.data_dir, args.epochs, args.experiment) == ("a folder", 20, script)
    assert flags.items() <= vars(args).items()


def submit(folder: Path, status: int = 0, left: int = 3600) -> int:
    """Run the job in SLURM's place; its status."""
    (folder / "calls").unlink(missing_ok=True)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_END_TIME": str(int(time.time()) + left),
    }
    return run(folder, LAUNCH / "slurm.sbatch", "data", **slurm, STATUS=str(status))


def test_a_job_begins_a_run_and_then_goes_on_with_it(tmp_path):
    assert submit(tmp_path) == 0
    launch, words = called(tmp_path)
    assert (launch.nnodes, launch.rdzv_endpoint, launch.rdzv_id) == (
        "2",
        f"{platform.node()}:29500",
        "7",
    )
    args = parse_args(words)
    run_folder = Path(args.output, args.experiment)
    assert (args.data_dir, args.lr) == ("data", 0.4)
    (tmp_path / run_folder).mkdir(parents=True)
    assert submit(tmp_path) == 0
    assert called(tmp_path)[1] == ["--resume", str(run_folder)]


@pytest.mark.parametrize(
    ("status", "left", "again"), [(1, 100, True), (1, 600, False), (0, 9, False)]
)
def test_a_job_that_its_time_limit_has_stopped_comes_back(status, left, again, tmp_path):
    assert submit(tmp_path, status, left) == status
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == "requeue 7\n" * again
