"""``sharded_data_parallel.py FOLDER``: train every case sharded, save halfway, tell the results.

Under torchrun two processes train first and leave a checkpoint; any number of processes started
later in the same folder go on from it. One process trains each case from its beginning as well,
unsharded. All see the same global batches, in float64.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from data_parallel import CLASSES, SIZE, validate
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import man_zoo
from man_zoo.runs.config import parse_args
from man_zoo.training.checkpoint import Checkpoints, Progress
from man_zoo.training.losses import LossWatch, NonFiniteLoss, check_weights
from man_zoo.training.setup import create_accelerator
from man_zoo.training.so_far import EpochSoFar
from man_zoo.training.trainer import Trainer, create_trainer

STEPS, SAVED, GLOBAL_BATCH = 6, 2, 6
VIT = {"backbone": "vit_tiny_patch16_224", "patch_size": 4, "depth": 8}
RESNET = {"backbone": "resnet20", "norm_layer": "groupnorm1", "head_norm": "group"}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "vit man_dgl": ({**VIT, "method": "man_dgl"}, ""),
    "vit manpp_dgl": ({**VIT, "method": "manpp_dgl"}, "--micro-batches 2"),
    "resnet man_dgl": (
        {**RESNET, "method": "man_dgl", "form": "release"},
        "--grad-accum-steps 2 --clip-grad 1 --model-ema",
    ),
}
# What the sharded runs recompute; the one that is not keeps everything.
RECOMPUTED = {
    "vit manpp_dgl": "stepwise blocks.0=all blocks.1=selective blocks.2=attention "
    "auxiliaries=sparing",
    "resnet man_dgl": "selective auxiliaries",
}
FLAGS = "--lr 0.02 --cpu-threads 1 --sched constant --warmup-epochs 0"


def create(case: str, *more: str, recompute: str | None = None) -> Trainer:
    """A trainer of a case's model, different in every process: they must agree without it."""
    GradientState._reset_state()
    AcceleratorState._reset_state()
    keywords, flags = CASES[case]
    args = parse_args([*FLAGS.split(), *flags.split(), *more])
    accelerator = create_accelerator(args, Path("unused"))
    torch.manual_seed(accelerator.process_index)
    model = man_zoo.localize(
        **keywords, k=4, num_classes=CLASSES, img_size=SIZE, recompute=recompute
    )
    trainer = create_trainer(args, accelerator, model.double(), batches=STEPS)
    trainer.start_epoch(0)
    return trainer


def checkpoints_of(trainer: Trainer, folder: Path) -> Checkpoints:
    folder.mkdir(exist_ok=True)
    accelerator, places, model = trainer.accelerator, trainer.places, trainer.model
    average = trainer.ema.module if trainer.ema else None
    watch = LossWatch(places, model, accelerator.device)
    so_far = EpochSoFar(watch, trainer.observer, [model], places, len(model.blocks))
    parts = (accelerator, places, model, average, trainer.states, Progress(), so_far, folder, 2)
    return Checkpoints(*parts, sharded=True)


def train(trainer: Trainer, steps: range) -> Tensor:
    """Losses ``(steps, K)``, means over the processes."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, GLOBAL_BATCH)
    images = torch.randn(*shape, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    target = torch.randint(CLASSES, shape, generator=generator)
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    share = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    losses = [trainer.train_batch(images[i, share], target[i, share]) for i in steps]
    return trainer.accelerator.reduce(torch.stack(losses), "mean")


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def end(trainer: Trainer) -> dict[str, Any]:
    """What has come of it: weights and their average, validation on uneven shares of batches."""
    averages = trainer.ema.module.parameters() if trainer.ema else []
    ends = [whole(p.detach()).flatten() for p in [*trainer.model.parameters(), *averages]]
    with trainer.gathered():
        validation = validate(trainer.accelerator, trainer.model)
    return {"weights": torch.cat(ends), "validation": validation}


def bytes_held() -> int:
    """Of all tensors that are alive in this process."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, torch.nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Order(TorchDispatchMode):
    """In which order a step gathers blocks and runs their backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if "allgather" in str(op):
            self.seen.append("gather")
        return op(*args, **(kwargs or {}))

    def backward(self, loss: Tensor) -> None:
        self.seen.append("backward")
        loss.backward()


def order_of(trainer: Trainer) -> list[str]:
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with Order() as order:
        trainer.model.local_step(images, torch.tensor([0, 1]), backward=order.backward)
    return order.seen


def sentences(trainer: Trainer) -> list[str]:
    """What is said of layers that come too late, and of one process's weights that are spoilt."""
    said = []
    try:
        trainer.model.reset_classifier(5)
    except RuntimeError as error:
        said.append(str(error))
    if not trainer.accelerator.is_main_process:
        with torch.no_grad():
            next(trainer.model.blocks[2].parameters()).to_local().fill_(float("nan"))
    try:
        check_weights(trainer.places, trainer.model, 1)
    except NonFiniteLoss as error:
        said.append(str(error))
    return said


def main(folder: Path) -> None:
    results: dict[str, Any] = {}
    for case in CASES:
        before = bytes_held()
        trainer = create(case, "--fsdp", recompute=RECOMPUTED.get(case))
        world = trainer.accelerator.num_processes
        checkpoints = checkpoints_of(trainer, folder / case)
        result = results[case] = {}
        if world == 2:
            result["first"] = train(trainer, range(SAVED))
            result["held"] = bytes_held() - before
            checkpoints.progress.advance([0.0], None, 0.0)
            checkpoints.save()
        else:
            checkpoints.resume()
        result["rest"] = train(trainer, range(SAVED, STEPS))
        result |= end(trainer)
        if world == 2:
            result["order"], result["said"] = order_of(trainer), sentences(trainer)
        del trainer, checkpoints
        if world == 1:
            before = bytes_held()
            alone = create(case)
            result["losses"] = train(alone, range(STEPS))
            result["held"] = bytes_held() - before
            result["alone"] = end(alone)
            del alone
    if AcceleratorState().is_main_process:
        torch.save(results, folder / f"{world}.pt")
    AcceleratorState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
