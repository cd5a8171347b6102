"""Block-parallel training does what one process does, to the bit."""

import json
from pathlib import Path

import block_parallel
import pytest
import torch
from recipe import ROOT, flags, processes, python, write_images
from test_images import truncated
from test_resume import KILLED, TRAIN, TWO, records

import man_zoo
from man_zoo import BlockParallel
from man_zoo.runs.checkpoints import list_all_checkpoints

HELPER = str(ROOT / "tests" / "block_parallel.py")
FOUR = processes(4)


@pytest.fixture(scope="module")
def differences(tmp_path_factory) -> dict:
    """What of each case differs from one process."""
    found = tmp_path_factory.mktemp("results") / "found.pt"
    python(*FOUR, HELPER, str(found))
    return torch.load(found, weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", block_parallel.FEW, ids=str)
def test_processes_for_blocks_equal_one(case, differences):
    assert differences[case] == []


def create() -> man_zoo.LocalModel:
    return man_zoo.localize("resnet20", "man_dgl", 3, num_classes=3, img_size=16)


def test_one_process_alone_takes_the_whole_step():
    torch.manual_seed(0)
    model = create()
    images, target = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model.local_step(images, target).losses
    model.load_state_dict(state)
    parallel = BlockParallel(model, [range(3)])
    (batch,) = parallel.batches([(images, target)], 1)
    assert torch.equal(parallel.step(*batch).losses, expected)
    parallel.finish()
    (logits,) = parallel.through(model.eval().backbone)(images)
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize("ranges", [[range(2)], [range(1), range(2, 3)], [range(3), range(0)]])
def test_every_block_is_someones(ranges):
    with pytest.raises(ValueError, match="one block or more and all 3 are trained, in order"):
        BlockParallel(create(), ranges)


def test_as_many_shares_as_processes():
    with pytest.raises(ValueError, match=r"2 process\(es\); there are 1"):
        BlockParallel(create(), [range(1), range(1, 3)])


SHARED = ("--block-parallel", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "epoch-0002" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_any_number_of_processes_goes_on_with_a_run(data, tmp_path):
    words = ("--epochs", "2", "--batch-size", "6", "--model-ema", "--sched", "constant")
    python(TRAIN, *flags(data, tmp_path / "one", *words))
    one, several = tmp_path / "one" / "run", tmp_path / "several" / "run"
    python(*TWO, TRAIN, *flags(data, tmp_path / "several", *words, "--epochs", "1", *SHARED))
    assert records(several)[0].keys() >= {"loss_block4", "busy_process1", "busy_process2"}
    goes_on = ("--resume", str(several), "--epochs", "2", "--block-parallel")
    refused = python(TRAIN, *goes_on, "2", check=False)
    assert refused.stderr.count("--block-parallel 2 needs 2 processes or a multiple") == 1
    python(TRAIN, *goes_on, "1")
    assert weights(several) == weights(one)


@pytest.mark.slow
def test_an_epoch_outlives_a_kill_in_its_validation(data, tmp_path):
    validation = ("man_zoo.training.evaluate.evaluate", "1:SIGKILL:0")
    killed = python(*TWO, KILLED, *validation, *flags(data, tmp_path, *SHARED), check=False)
    assert killed.returncode
    saved = list_all_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == ["epoch-0000-batch-000006"]
    python(*TWO, TRAIN, "--resume", str(tmp_path / "run"), *SHARED)
    assert len(records(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_validation_batch_of_unreadable_images_is_left_out_everywhere(tmp_path):
    data = write_images(tmp_path / "data")
    truncated(data / "test" / "class2" / "8.png")  # alone in the last of four batches
    words = ("--skip-bad-images", "--in-memory", "off", "--workers", "0", "-vb", "3")
    python(*TWO, TRAIN, *flags(data, tmp_path, *words, *SHARED))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["count"] == 9
    assert len(summary["exits"]) == 4


@pytest.mark.slow
def test_block_parallel_times_data_parallel_is_data_parallel(data, tmp_path):
    words = ("--epochs", "2", "--model-ema", "--grad-accum-steps", "2")
    python(*TWO, TRAIN, *flags(data, tmp_path / "two", *words))
    python(*FOUR, TRAIN, *flags(data, tmp_path / "four", *words, *SHARED))
    two, four = tmp_path / "two" / "run", tmp_path / "four" / "run"
    assert weights(four) == weights(two)
    for mine, theirs in zip(records(four), records(two), strict=True):
        for key in ("loss_block1", "loss_block4", "val_loss", "ema_val_loss"):
            assert mine[key] == theirs[key], key


@pytest.mark.slow
def test_more_processes_than_blocks_are_told_so(data, tmp_path):
    words = ("--model", "resnet20_dgl_k2", "--model-kwargs", "head=narrow", "--block-parallel", "4")
    refused = python(*FOUR, TRAIN, *flags(data, tmp_path, *words), check=False)
    assert "4 processes need as many blocks, and there are 2" in refused.stderr
    assert not (tmp_path / "run").exists()
