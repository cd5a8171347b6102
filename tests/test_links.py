"""What a block-parallel process sends is what the planner says."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

import man_zoo
from man_zoo import BlockParallel
from man_zoo.parallel.neighbours import Outbox
from man_zoo.planner import Setting, place

BATCH, STEPS = 4, 3
# Backbone, method, precision.
CASES = {
    "nothing comes back": ("resnet20", "dgl", "no"),
    "parameters come back": ("resnet20", "man_dgl", "no"),
    "images go along": ("resnet20", "man_infopro", "no"),
    "half the features": ("resnet20", "man_dgl", "bf16"),
    "tokens": ("vit_tiny_patch16_224", "man_dgl", "no"),
}


def count_bytes(rank: int, folder: str) -> None:
    """One of two processes: what is predicted of it, and what it puts on its way in each step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: measure(*case) for name, case in CASES.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measure(backbone: str, method: str, precision: str) -> dict:
    torch.manual_seed(0)
    model = man_zoo.localize(backbone, method, 3, num_classes=3, img_size=32).train()
    placement = place(model, Setting(BATCH, precision=precision), 2)
    parallel = BlockParallel(model, placement.ranges)
    counted: list[int] = []
    outbox = parallel.to_next if parallel.is_first else parallel.to_previous

    def put(tensors: list[torch.Tensor], *, headers: bool = True) -> None:
        counted.append(sum(tensor.nbytes for tensor in tensors))
        Outbox.put(outbox, tensors, headers=headers)

    outbox.put = put
    blocks = parallel.blocks
    if precision == "bf16":
        blocks = [torch.autocast("cpu", torch.bfloat16)(block.__call__) for block in blocks]
    batch = torch.randn(BATCH, *model.input_size), torch.tensor([0, 1, 2, 0])
    for features, target in parallel.batches([batch] * STEPS, STEPS):
        parallel.step(features, target, blocks=blocks)
    parallel.finish()
    losses = 4 * parallel.own.stop  # they go along
    predicted = placement.sent[0] + losses if parallel.is_first else placement.returned[0]
    return {"predicted": predicted, "counted": counted}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("links")
    multiprocessing.spawn(count_bytes, (str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_what_is_sent_is_what_was_predicted(case, found):
    first, second = (process[case] for process in found)
    assert first["counted"] == [first["predicted"]] * STEPS
    copied = "man" in CASES[case][1]
    assert second["counted"] == [second["predicted"]] * STEPS * copied
    assert bool(second["predicted"]) is copied
