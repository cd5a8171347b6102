"""The Trainer beside loops written by hand: accumulation, clipping, schedules, mixup, averages.

Models are in float64, so that what two ways of computing differ by is far below any mistake.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from timm.data import Mixup
from torch import Tensor, nn

import man_zoo
from man_zoo.runs.config import parse_args
from man_zoo.training.setup import create_accelerator
from man_zoo.training.trainer import Trainer, create_trainer

SIZE, CLASSES, BATCH = 8, 3, 4
# Plain gradient descent.
PLAIN = ("--opt", "momentum", "--momentum", "0", "--sched", "constant", "--warmup-epochs", "0")
MAN = {"method": "man_dgl", "head": "narrow", "momentum": 0.9}
METHODS = {
    "dgl": {"method": "dgl"},
    "man_dgl, release": MAN | {"form": "release"},
    "man_dgl, paper": MAN | {"form": "paper"},
    "manpp_dgl": MAN | {"method": "manpp_dgl"},
    "man_infopro": {"method": "man_infopro", "momentum": 0.9},
    "overlap_dgl": {"method": "overlap_dgl", "head": "narrow"},
}
# A batch is then no more than its images: two halves are one batch.
GROUP_NORM = {"norm_layer": "groupnorm1", "head_norm": "group"}


@pytest.fixture
def create(monkeypatch) -> Callable[..., Trainer]:
    """Builds a Trainer from flags, for epochs of ``batches`` batches."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def create(model: man_zoo.LocalModel, batches: int, *words: str) -> Trainer:
        GradientState._reset_state()
        AcceleratorState._reset_state(True)
        args = parse_args(["--cpu-threads", "1", *words])
        accelerator = create_accelerator(args, Path("unused"))
        return create_trainer(args, accelerator, model, batches)

    return create


def localize(method: str = "dgl", **keywords) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    keywords = METHODS[method] | keywords
    return man_zoo.localize(
        "resnet20", k=3, num_classes=CLASSES, img_size=SIZE, **keywords
    ).double()


def draw(batches: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (batches, BATCH, 3, SIZE, SIZE)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(CLASSES, shape[:2], generator=generator)
    return list(zip(images, target, strict=True))


def train(trainer: Trainer, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Train for one epoch, each update looked at; the losses ``(batches, K)``."""
    trainer.start_epoch(0)
    losses = []
    for batch in batches:
        trainer.observer.begin(trainer.updates + 1, look=True)
        losses.append(trainer.train_batch(*batch))
    return torch.stack(losses)


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def assert_close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


# Updates


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_are_one_batch(method, clip, create):
    model = localize(method, **GROUP_NORM)
    by_hand = copy.deepcopy(model).train()
    batches, lr, decay = draw(6), 0.05, 0.01
    words = [*PLAIN, "--lr", str(lr), "--weight-decay", str(decay), "--grad-accum-steps", "2"]
    words += [] if clip is None else ["--clip-grad", str(clip)]
    trainer = create(model, len(batches), *words)
    losses, norms = train(trainer, batches), {j: [] for j in range(3)}

    def step(j: int) -> None:
        learnt = [p for p in by_hand.blocks[j].parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in learnt))
        assert norm > 0.05  # clipping has something to do
        norms[j].append(norm)
        scale = 1 if clip is None else clip / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        with torch.no_grad():
            for p in learnt:
                p -= lr * (scale * p.grad + decay * p)
                p.grad = None

    for i in range(0, len(batches), 2):
        images, target = (torch.cat(halves) for halves in zip(*batches[i : i + 2], strict=True))
        output = by_hand.local_step(images, target, step=step)
        assert_close(losses[i : i + 2].mean(0), output.losses)
    assert_close(values(model), values(by_hand))
    seen = trainer.observer.record()
    for j, of_block in norms.items():
        assert seen[f"grad_norm_block{j + 1}"] == pytest.approx(sum(of_block) / 3, abs=1e-10)


def test_every_block_is_clipped_to_the_norm_by_itself(create):
    model, clip = localize(**GROUP_NORM), 1e-3
    before = [values(block) for block in model.blocks]
    words = (*PLAIN, "--lr", "1", "--weight-decay", "0", "--clip-grad", str(clip))
    train(create(model, 1, *words), draw(1))
    for block, old in zip(model.blocks, before, strict=True):
        change = [new - was for new, was in zip(values(block), old, strict=True)]
        norm = math.sqrt(sum(float(c.square().sum()) for c in change))
        assert norm == pytest.approx(clip, rel=1e-3)  # 1e-6 is added to the gradient's norm


def test_one_scale_is_for_all_blocks_that_add_gradients_up(create):
    """As fp16 would scale losses; the last block's first update overflows."""
    model = localize("overlap_dgl")
    by_hand, batches = copy.deepcopy(model).train(), draw(3)
    trainer = create(model, len(batches), *PLAIN, "--lr", "0.05", "--weight-decay", "0")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer = dataclasses.replace(trainer)
    overflow = iter([math.inf])
    classifier = model.blocks[-1].output.get_parameter("fc.weight")
    classifier.register_hook(lambda grad: grad * next(overflow, 1))
    train(trainer, batches)

    def step(j: int, lr: float = 0.05) -> None:
        with torch.no_grad():
            for p in by_hand.blocks[j].parameters():
                p -= lr * p.grad
                p.grad = None

    by_hand.local_step(*batches[0], step=lambda j: step(j, 0.05 if j < 2 else 0))
    for batch in batches[1:]:
        by_hand.local_step(*batch, step=step)
    assert_close(values(model), values(by_hand))


def test_every_blocks_rate_follows_the_schedule_from_update_to_update(create):
    peak, first, lowest, warmup, epochs, updates = 0.5, 0.2, 0.1, 2, 3, 4
    words = ("--lr", str(peak), "--warmup-lr", str(first), "--min-lr", str(lowest))
    words += ("--epochs", str(epochs), "--warmup-epochs", str(warmup / updates))
    words += ("--grad-accum-steps", "2")
    trainer, batches = create(localize(), 2 * updates, *words), draw(2 * updates)
    rates = []
    for epoch in range(epochs):
        trainer.start_epoch(epoch)
        for batch in batches:
            lrs = {group["lr"] for o in trainer.optimizers for group in o.param_groups}
            assert lrs == {trainer.lr}
            rates.append(trainer.lr)
            trainer.train_batch(*batch)
    assert trainer.updates == epochs * updates

    def cosine(update: int) -> float:
        if update < warmup:
            return first + (peak - first) * update / warmup
        share = update / (epochs * updates)
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * share)) / 2

    wanted = [cosine(update) for update in range(epochs * updates)]
    assert rates[::2] == pytest.approx(wanted)
    assert rates[1::2] == rates[::2]  # one rate for both batches of an update


def test_an_epoch_goes_on_where_its_updates_begin(create):
    """As after a resume."""
    words = ("--lr", "0.5", "--epochs", "4", "--warmup-epochs", "0", "--sched", "step")
    words += ("--sched-kwargs", "decay_epochs=1", "decay_rate=0.1")
    trainer = create(localize(), 5, *words)
    trainer.start_epoch(3)
    assert trainer.updates == 15
    assert trainer.lr == pytest.approx(0.5e-3)


# What is trained on, and in what mode


def test_batches_are_mixed_as_timm_mixes_them(create):
    model = localize(**GROUP_NORM)
    by_hand = copy.deepcopy(model).train()
    words = ("--mixup", "0.5", "--cutmix", "1", "--mixup-prob", "0.7", "--mixup-switch-prob", "0.3")
    trainer = create(model, 8, *PLAIN, "--lr", "0", *words)
    mixup = Mixup(0.5, 1, prob=0.7, switch_prob=0.3, label_smoothing=0, num_classes=CLASSES)
    np.random.seed(0)
    losses = train(trainer, draw(8))
    np.random.seed(0)
    for mixed, batch in zip(losses, draw(8), strict=True):
        assert_close(mixed, by_hand.local_step(*mixup(*batch)).losses)


def test_an_epoch_trains_after_a_validation(create):
    trainer = create(localize(), 1)
    trainer.model.eval()
    trainer.start_epoch(1)
    assert all(module.training for module in trainer.model.modules())


def test_a_linear_probe_keeps_the_statistics_of_what_is_frozen(create):
    trainer = create(localize(), 1, "--tune", "head")
    trainer.start_epoch(0)
    assert not any(module.training for module in trainer.model.modules())


def test_a_probe_of_a_dense_task_trains_its_decoder_as_one(create):
    model = man_zoo.localize(
        "test_resnet", "e2e", task="segmentation", num_classes=CLASSES, img_size=32
    )
    trainer = create(model, 1, "--tune", "head")
    trainer.start_epoch(0)
    assert all(module.training for module in model.decoder.modules())
    assert not any(module.training for module in model.backbone.modules())


# The moving average of the weights


def test_the_average_follows_the_backbone_once_an_update(create):
    model, decay = localize("man_dgl, paper"), 0.7
    words = (*PLAIN, "--model-ema", "--model-ema-decay", str(decay), "--grad-accum-steps", "2")
    trainer = create(model, 6, *words)
    average = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    trainer.start_epoch(0)
    for i, batch in enumerate(draw(6)):
        trainer.train_batch(*batch)
        if i % 2:
            for name, value in model.backbone.state_dict().items():
                if value.is_floating_point():
                    average[name] = decay * average[name] + (1 - decay) * value
                else:
                    average[name] = value.clone()  # a count of batches
    assert_close(dict(trainer.ema.module.state_dict()), average)
    assert not any(module.training for module in trainer.ema.module.modules())
