"""Blocks sharded over processes train as in one, and go on with any number of them."""

import filecmp
from pathlib import Path

import pytest
import timm
import torch
from recipe import ROOT, flags, python, train_here, write_images
from safetensors.torch import load_file
from sharded_data_parallel import CASES, SAVED

from man_zoo.commands.__main__ import main as run_command

HELPER = str(ROOT / "tests" / "sharded_data_parallel.py")


def torchrun(count: int) -> tuple[str, ...]:
    """Not forked: a process of three has once crashed within torch's functional collectives."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count))


TWO = torchrun(2)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, dict]:
    """Every case, by two processes; gone on with by one and by three; and by one alone."""
    folder = tmp_path_factory.mktemp("results")
    for count in (2, 1, 3):
        python(*(torchrun(count) if count > 1 else ()), HELPER, str(folder))
    return {n: torch.load(folder / f"{n}.pt", weights_only=False) for n in (1, 2, 3)}


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_share_equal_one(case, results):
    one, two = results[1][case], results[2][case]
    assert_close(torch.cat([two["first"], two["rest"]]), one["losses"])
    assert_close(two["weights"], one["alone"]["weights"])
    assert two["validation"]["exits"] == one["alone"]["validation"]["exits"]
    assert two["validation"]["count"] == 10


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_another_number_of_processes_goes_on(case, processes, results):
    alone, resumed = results[1][case], results[processes][case]
    assert_close(resumed["rest"], alone["losses"][SAVED:])
    assert_close(resumed["weights"], alone["alone"]["weights"])
    assert resumed["validation"]["exits"] == alone["alone"]["validation"]["exits"]


@pytest.mark.parametrize("case", CASES)
def test_between_steps_a_process_holds_half(case, results):
    assert 0.49 < results[2][case]["held"] / results[1][case]["held"] < 0.51


@pytest.mark.parametrize("case", CASES)
def test_a_block_is_gathered_before_the_backward_of_the_one_before(case, results):
    order = results[2][case]["order"]
    assert order == ["gather", *["gather", "backward"] * 3, "backward"]


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_said(case, results):
    late, spoilt = results[2][case]["said"]
    assert late == (
        "reset_classifier makes new layers, and this model's are sharded over processes already; "
        "call it before shard_model."
    )
    assert "statistics of block 3 " in spoilt


def test_a_sharded_run_is_exported_and_gone_on_with(tmp_path):
    """By the command, with BatchNorm, an average of weights and MAN++'s scale."""
    data, run = write_images(tmp_path / "data"), tmp_path / "run"
    model = ("--model", "resnet20_manpp_dgl_k4", "--model-ema", "--fsdp")
    python(*TWO, str(ROOT / "recipes" / "train.py"), *flags(data, tmp_path, *model))
    checkpoint: Path = run / "checkpoints" / "epoch-0001"
    assert len(list(checkpoint.glob("shard-*.safetensors"))) == 2
    assert not list(checkpoint.glob("model*"))
    for name, flag in (("export", ()), ("export-ema", ("--ema",))):
        copy = tmp_path / name
        assert run_command(["export", str(run), "-o", str(copy), *flag]) == 0
        assert filecmp.cmp(copy / "model.safetensors", run / name / "model.safetensors", False)
    assert load_file(run / "export" / "model.safetensors").keys() == (
        timm.create_model("resnet20").state_dict().keys()
    )
    summary = train_here("--resume", str(run), "--epochs", "2")
    assert summary["epochs"] == 2
    assert run_command(["evaluate", str(run), "--exits"]) == 0
