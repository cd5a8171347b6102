"""Block-parallel training does what one process does, to the bit."""

import block_parallel
import pytest
import torch
from recipe import ROOT, python

import man_zoo
from man_zoo import BlockParallel

HELPER = str(ROOT / "tests" / "block_parallel.py")
FOUR = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4")


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
    (logits,) = parallel.forward(model.eval().backbone, images)
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize("ranges", [[range(2)], [range(1), range(2, 3)], [range(3), range(0)]])
def test_every_block_is_someones(ranges):
    with pytest.raises(ValueError, match="one block or more and all 3 are trained, in order"):
        BlockParallel(create(), ranges)


def test_as_many_shares_as_processes():
    with pytest.raises(ValueError, match=r"2 process\(es\); there are 1"):
        BlockParallel(create(), [range(1), range(1, 3)])
