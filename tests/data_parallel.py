"""``data_parallel.py FILE``: train every case on this process's share, and save what came of it.

Run by one process or by several under torchrun, the global batches are the same. Every case is in
float64 and without BatchNorm, so results may differ by rounding only. What becomes of BatchNorm's
statistics is told under ``"statistics"``; of plain DDP, which waits in backward, and of a process
that is behind under ``"plain"`` and ``"waits"``.
"""

import gc
import sys
from datetime import timedelta
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import man_zoo
from man_zoo.data.memory_loader import MemoryLoader
from man_zoo.parallel.data_parallel import Replica
from man_zoo.runs.config import parse_args
from man_zoo.tasks import Classification
from man_zoo.training.evaluate import evaluate_exits
from man_zoo.training.losses import LossWatch
from man_zoo.training.observe import merge
from man_zoo.training.setup import create_accelerator
from man_zoo.training.trainer import create_trainer

STEPS, GLOBAL_BATCH, SIZE, CLASSES = 20, 4, 8, 3
METHODS = {
    "e2e": {"method": "e2e"},
    "dgl": {"method": "dgl"},
    "man_dgl, release": {"method": "man_dgl", "head": "narrow"},
    "man_dgl, paper": {"method": "man_dgl", "head": "narrow", "form": "paper"},
    "man_infopro": {"method": "man_infopro"},
    "overlap_dgl": {"method": "overlap_dgl", "head": "narrow"},
}
CASES = list(product(METHODS, (1, 2)))
SLICED = [("man_dgl, paper", 1), ("man_infopro", 2), ("overlap_dgl", 1)]
PLAIN = [("e2e", 1), ("man_dgl, release", 1), ("man_dgl, paper", 2), ("overlap_dgl", 2)]


def train_case(method: str, accumulate: int, plain: bool = False, slices: int = 1) -> dict:
    """Losses, weights and validation after ``STEPS`` batches; in plain DDP where asked."""
    GradientState._reset_state()
    AcceleratorState._reset_state()
    flags = f"--lr 0.05 --clip-grad 1 --cpu-threads 1 --grad-accum-steps {accumulate}"
    flags += f" --micro-batches {slices}"
    args = parse_args(flags.split())
    accelerator = create_accelerator(args, Path("unused"))
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(rank)  # different on purpose: the processes must agree without it
    model = man_zoo.localize(
        "resnet20",
        k=1 if method == "e2e" else 4,
        num_classes=CLASSES,
        img_size=SIZE,
        norm_layer="groupnorm1",
        head_norm="group",
        **METHODS[method],
    )
    trainer = create_trainer(args, accelerator, model.double(), batches=STEPS)
    if plain:
        trainer.blocks = [
            DistributedDataParallel(block.module, broadcast_buffers=False)
            for block in trainer.blocks
        ]
        gc.collect()  # takes the hooks of what wrapped them before along
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, GLOBAL_BATCH)
    images = torch.randn(*shape, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    target = torch.randint(CLASSES, shape, generator=generator)
    share = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    trainer.start_epoch(0)
    of_batches = []
    for x, y in zip(images, target, strict=True):
        trainer.observer.begin(trainer.updates + 1, look=True)
        of_batches.append(trainer.train_batch(x[share], y[share]))
    losses = torch.stack(of_batches)
    watch = LossWatch(trainer.places, model, accelerator.device)
    for i, of_batch in enumerate(losses):
        watch.add(i, of_batch)
    trainer.finish_epoch()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {
        "losses": accelerator.reduce(losses, "mean"),
        "mean_losses": watch.mean(),
        "observed": merge(gather_object([trainer.observer.record()])),
        "weights": weights,
        "same_everywhere": bool((accelerator.gather(weights[None]) == weights).all()),
        "validation": validate(accelerator, model),
        "updates": trainer.updates,
        "wrapped": {type(block).__name__ for block in trainer.blocks},
    }


def average_statistics() -> dict:
    """Running statistics of every process ``(processes, numbers)``, before and after an epoch."""
    GradientState._reset_state()
    AcceleratorState._reset_state()
    args = parse_args(["--cpu-threads", "1", "--model-ema"])
    accelerator = create_accelerator(args, Path("unused"))
    model = man_zoo.localize("resnet20", "man_dgl", 2, num_classes=CLASSES, img_size=SIZE)
    trainer = create_trainer(args, accelerator, model, batches=1)
    torch.manual_seed(accelerator.process_index)

    def statistics(module) -> torch.Tensor:
        numbers = [b.flatten() for name, b in module.named_buffers() if "running" in name]
        return accelerator.gather(torch.cat(numbers)[None])

    trainer.start_epoch(0)
    trainer.train_batch(torch.randn(4, 3, SIZE, SIZE), torch.randint(CLASSES, (4,)))
    modules = {"model": model, "average": trainer.ema.module}
    before = {name: statistics(module) for name, module in modules.items()}
    trainer.finish_epoch()
    return {name: (before[name], statistics(module)) for name, module in modules.items()}


def waits() -> list[bool]:
    """Whether a block's backward waits for a process that is behind: plain DDP's, and ours."""
    told = []
    for wrap in (DistributedDataParallel, Replica):
        block = wrap(nn.Linear(4, 1))
        store, key = dist.distributed_c10d._get_default_store(), f"{wrap.__name__} is through"
        if dist.get_rank() == 1:
            told.append(not _comes(store, key))
        block(torch.ones(2, 4)).sum().backward()
        if dist.get_rank() == 0:
            store.set(key, "")
        if isinstance(block, Replica):
            block.averages.wait()
        dist.barrier()
    dist.broadcast_object_list(told := told or [None, None], src=1)
    return told


def _comes(store: dist.Store, key: str) -> bool:
    try:
        store.wait([key], timedelta(seconds=2))
    except dist.DistStoreError:
        return False
    return True


def validate(accelerator, model) -> dict:
    """Accuracy on 10 images in batches of 4: two processes get batches of 4 and 1."""
    generator = torch.Generator().manual_seed(1)
    loader = MemoryLoader(
        torch.randint(256, (10, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator),
        torch.randint(CLASSES, (10,), generator=generator),
        batch_size=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        dtype=torch.float64,
    )
    return evaluate_exits(accelerator, Classification(CLASSES), model, loader)


if __name__ == "__main__":
    results: dict = {case: train_case(*case) for case in CASES}
    results["statistics"] = average_statistics()
    if AcceleratorState().num_processes > 1:
        results["plain"] = {case: train_case(*case, plain=True) for case in PLAIN}
        results["waits"] = waits()
        results["sliced"] = {case: train_case(*case, slices=2) for case in SLICED}
    if AcceleratorState().is_main_process:
        torch.save(results, sys.argv[1])
    AcceleratorState().destroy_process_group()
