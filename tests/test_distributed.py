"""Two processes do what one does with their batches put together."""

from pathlib import Path

import pytest
import torch
from data_parallel import CASES, PLAIN, SLICED, STEPS
from recipe import ROOT, flags, python, write_images

from man_zoo.training.observe import GRAD_NORM

HELPER = str(ROOT / "tests" / "data_parallel.py")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, dict]:
    """Every case, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("results")
    python(HELPER, str(folder / "one.pt"))
    python(*TWO, HELPER, str(folder / "two.pt"))
    one, two = (torch.load(folder / name, weights_only=False) for name in ("one.pt", "two.pt"))
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, results):
    one, two = (result[case] for result in results)
    assert two["wrapped"] == {"Replica"}
    assert one["updates"] == two["updates"] == STEPS // case[1]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0, atol=1e-10)
    assert two["mean_losses"] == pytest.approx(one["losses"].mean(0).tolist(), abs=1e-10)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-10)
    assert two["same_everywhere"]


@pytest.mark.slow
@pytest.mark.parametrize("case", PLAIN)
def test_averages_that_come_late_change_no_bit(case, results):
    late, plain = results[1][case], results[1]["plain"][case]
    assert plain["wrapped"] == {"DistributedDataParallel"}
    assert torch.equal(late["losses"], plain["losses"])
    assert torch.equal(late["weights"], plain["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLICED)
def test_two_processes_in_micro_batches_equal_one_without(case, results):
    one, two = results[0][case], results[1]["sliced"][case]
    assert two["wrapped"] == {"Replica"}
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0, atol=1e-10)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_blocks_backward_does_not_wait_for_the_other_process(results):
    assert results[1]["waits"] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_all_processes(case, results):
    one, two = (result[case]["observed"] for result in results)
    assert two.keys() == one.keys()  # time and memory of every block too
    norms = [key for key in one if key.startswith(GRAD_NORM)]
    assert [two[key] for key in norms] == pytest.approx([one[key] for key in norms], abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_validation_counts_every_image_once(case, results):
    one, two = (result[case]["validation"] for result in results)
    assert two["count"] == one["count"] == 10
    assert two["exits"] == one["exits"]
    assert (two["top1"], two["top5"]) == (one["top1"], one["top5"])
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["model", "average"])
def test_statistics_are_averaged_over_processes(module, results):
    before, after = results[1]["statistics"][module]
    assert not torch.equal(before[0], before[1])
    torch.testing.assert_close(after[0], before.mean(0))
    assert torch.equal(after[0], after[1])


@pytest.mark.slow
def test_recipe_in_two_processes(tmp_path):
    data, train = write_images(tmp_path / "data"), str(ROOT / "recipes" / "train.py")
    python(*TWO, train, *flags(data, tmp_path, "--model-ema"))
    again = python(*TWO, train, *flags(data, tmp_path), check=False)
    assert again.stderr.count("train.py: ") == 1
    checkpoint: Path = tmp_path / "run" / "checkpoints" / "epoch-0001"
    assert len(list(checkpoint.glob("random_states_*"))) == 2
    alone = python(train, "--resume", str(tmp_path / "run"), check=False)
    assert "cannot be resumed by 1; launch 2 process(es)." in alone.stderr
