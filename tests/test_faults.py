"""Of several processes one is told to stop, or killed: that stops all, and the run goes on."""

import re
from pathlib import Path

import pytest
from recipe import flags, python, write_images
from test_images import truncated
from test_resume import (
    EVERYTHING,
    KILLED,
    TRAIN,
    TWO,
    assert_same_run,
    assert_same_weights,
    records,
)

TRAIN_BATCH = "man_zoo.training.trainer.Trainer.train_batch"
# How two processes share the work: the flags of each way, the batch in which the second process is
# told to stop, the first of the second epoch; the batches of that epoch that are done when all
# have stopped; and, gone on, the batch in which the second process is killed, in the third epoch.
MODES = {
    "data-parallel": ((), 7, 4, 5),
    "block-parallel": (("--block-parallel", "2"), 13, 8, 9),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six batches an epoch for each of two processes."""
    data = write_images(tmp_path_factory.mktemp("data"), train=48)
    truncated(data / "train" / "class0" / "3.png")
    return data


def said(output: str) -> list[str]:
    return re.findall(r"^(?:train|killed_recipe)\.py: .*$", output, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_processes_stop_together_and_go_on_bit_identically(mode, data, tmp_path) -> None:
    streamed = ("--skip-bad-images", "--in-memory", "off", "--workers", "1")
    mode_flags, told_in, done, killed_in = MODES[mode]
    words = (*EVERYTHING, *streamed, "--log-interval", "2", *mode_flags)
    python(*TWO, TRAIN, *flags(data, tmp_path / "whole", *words))
    run = tmp_path / "broken" / "run"

    # The second process alone is told, in the first update of the second epoch; after that update
    # it says so, and all stop when the others may have heard it, an update later or two.
    broken = flags(data, tmp_path / "broken", *words)
    told = python(*TWO, KILLED, TRAIN_BATCH, f"{told_in}:SIGTERM:1", *broken, check=False)
    [sentence] = said(told.stderr)
    assert sentence.endswith(f"the checkpoint is written; go on with --resume {run}.")
    assert re.search(r"exitcode *: 143", told.stderr)
    checkpoint = run / "checkpoints" / f"epoch-0001-batch-{done:06}"
    assert checkpoint.is_dir(), [*checkpoint.parent.iterdir()]

    kill = (KILLED, TRAIN_BATCH, f"{killed_in}:SIGKILL:1")
    killed = python(*TWO, *kill, "--resume", str(run), check=False)
    [sentence] = said(killed.stderr)
    assert sentence.endswith(f"; go on with --resume {run}.")
    assert killed.returncode
    assert not checkpoint.is_dir()  # replaced by that of its epoch

    python(*TWO, TRAIN, "--resume", str(run))
    assert_same_run(run, tmp_path / "whole" / "run")
    if mode == "block-parallel":  # which one process would have done alike
        python(TRAIN, *flags(data, tmp_path / "alone", *EVERYTHING, *streamed))
        assert_same_weights(run, tmp_path / "alone" / "run")
    assert [line["bad_images"] for line in records(run)] == [1, 1, 1]
    assert not list(run.rglob(".*"))
