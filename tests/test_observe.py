"""What a run says of its blocks beside the losses: gradient norm, time, memory; at no price."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from recipe import flags, train_here, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import man_zoo
from man_zoo.meter import LiveBytes
from man_zoo.runs.config import parse_args
from man_zoo.runs.folder import load_log
from man_zoo.training import observe
from man_zoo.training.observe import Observer, merge, merge_states
from man_zoo.training.setup import create_accelerator
from man_zoo.training.trainer import Trainer, create_trainer

CPU = torch.device("cpu")
MIB = 2**20
SCALES = (8.0, 1024.0, float("inf"))  # the last overflows in every update
PER_BLOCK = ("loss_block", "grad_norm_block", "seconds_block", "peak_mib_block")


@pytest.fixture
def create(monkeypatch) -> Callable[..., Trainer]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def create(model: man_zoo.LocalModel, *words: str) -> Trainer:
        GradientState._reset_state()
        AcceleratorState._reset_state(True)
        args = parse_args(["--cpu-threads", "1", "--warmup-epochs", "0", *words])
        accelerator = create_accelerator(args, Path("unused"))
        return create_trainer(args, accelerator, model, 4)

    return create


@pytest.fixture
def model() -> man_zoo.LocalModel:
    torch.manual_seed(0)
    return localize("man_dgl", head="narrow")


def localize(method: str, **keywords) -> man_zoo.LocalModel:
    return man_zoo.localize("resnet20", method, 3, num_classes=3, img_size=8, **keywords)


def draw() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 8, 3, 8, 8, generator=generator)
    return list(zip(images, torch.randint(3, (4, 8), generator=generator), strict=True))


def train(trainer: Trainer, *, look: bool) -> None:
    trainer.start_epoch(0)
    for batch in draw():
        if look:
            trainer.observer.begin(trainer.updates + 1, look=True)
        trainer.train_batch(*batch)


# In training


@pytest.mark.parametrize(
    "words",
    [(), ("--clip-grad", "0.1"), ("--grad-accum-steps", "2"), ("--mixed-precision", "bf16")],
    ids=" ".join,
)
def test_who_is_looked_at_learns_the_same(words, model, create) -> None:
    looked_at = copy.deepcopy(model)
    train(create(model, *words), look=False)
    train(trainer := create(looked_at, *words), look=True)
    assert all(map(torch.equal, model.state_dict().values(), looked_at.state_dict().values()))
    assert len(trainer.observer.record()) == 9


def test_a_gradient_is_measured_unscaled(create) -> None:
    """As a scaler of fp16 would scale it; what overflows is skipped, and no number."""
    model = localize("dgl")
    scaled = copy.deepcopy(model)
    train(plain := create(model), look=True)
    trainer = create(scaled)
    trainer.scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in SCALES]
    train(trainer, look=True)
    norms = [
        [observed.get(f"grad_norm_block{j}") for j in (1, 2, 3)]
        for observed in (trainer.observer.record(), plain.observer.record())
    ]
    assert norms[0][:2] == pytest.approx(norms[1][:2], rel=1e-5)
    assert norms[0][2] is None
    assert norms[1][2] > 0


def test_the_largest_peak_of_a_block_is_that_of_a_step(model, create) -> None:
    trainer = create(model)
    train(trainer, look=True)
    with LiveBytes() as live:
        live.track(model, trainer.optimizers)
        trainer.train_batch(*draw()[0])
    peaks = [trainer.observer.record()[f"peak_mib_block{j}"] for j in (1, 2, 3)]
    assert max(peaks) == pytest.approx(live.peak / MIB, rel=1e-3)
    assert min(peaks) < max(peaks)


def test_compiled_blocks_are_not_metered(model, create) -> None:
    with torch.compiler.set_stance("force_eager"):  # which takes no minutes
        train(trainer := create(model, "--compile"), look=True)
    assert [key[:-1] for key in trainer.observer.record()][::3] == list(PER_BLOCK[1:3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_every_look_times_and_weighs(model, create, monkeypatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    trainer = create(model)
    trainer.start_epoch(0)
    for images, target in draw():
        trainer.observer.begin(trainer.updates + 1, look=True)
        trainer.train_batch(images.cuda(), target.cuda())
    peak = torch.cuda.max_memory_allocated() / MIB  # since the last turn began
    seen = trainer.observer.record()
    assert all(seen[f"{name}{j}"] > 0 for name in PER_BLOCK[1:] for j in (1, 2, 3))
    assert max(seen[f"peak_mib_block{j}"] for j in (1, 2, 3)) >= peak


# The observer by itself


class Clock:
    """Time that passes when a function says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(observe, "time", clock)
    return clock


def observe_updates(observer: Observer, clock: Clock, *took: tuple[float, ...], batches=2) -> dict:
    """Updates in which the blocks take so long a batch, forward; and three seconds backward."""
    for update, seconds in enumerate(took, 1):
        for _ in range(batches):
            observer.begin(update, look=True)
            forward = observer.watch([clock.wait] * len(seconds))
            for j, of_block in enumerate(seconds):
                forward[j](of_block)
                with observer.turn(j):
                    clock.wait(3)
                clock.wait(100)  # nobody's
    return observer.record()


def test_seconds_are_of_an_update_with_all_its_batches(clock) -> None:
    seen = observe_updates(Observer(CPU), clock, (50, 50), (1, 2), (3, 2))
    assert seen == {"seconds_block1": 10, "seconds_block2": 10}  # without the first, which warms up


def test_the_first_update_counts_where_there_is_no_other(clock) -> None:
    observer = Observer(CPU)
    assert observe_updates(observer, clock, (50,), batches=1) == {"seconds_block1": 53}
    observer.clear()
    observer.begin(2, look=False)
    with observer.turn(0):
        clock.wait(1)
    assert observer.record() == {}


def test_the_second_update_is_metered_and_not_timed(clock) -> None:
    kept = torch.zeros(MIB)  # of 4 bytes each
    elsewhere = torch.empty(MIB, device="meta")  # as another process's blocks are here
    observer = Observer(CPU, resident=[kept, elsewhere])

    def grow(mebibytes: float) -> None:
        clock.wait(mebibytes)
        torch.zeros(int(mebibytes * MIB / 4))

    for update in (1, 2, 3):
        observer.begin(update, look=True)
        for forward in observer.watch([grow, grow]):
            forward(update)
    seen = observer.record()
    assert seen["seconds_block2"] == 3
    assert seen["peak_mib_block1"] == 6
    observer.clear()
    observer.begin(4, look=True)
    assert observer.record() == {"peak_mib_block1": 6, "peak_mib_block2": 6}  # known from then on


def test_records_of_processes_become_one() -> None:
    """Of processes with the same blocks, and of such with others."""
    data = [
        {"seconds_block1": 1, "peak_mib_block1": 5},
        {"seconds_block1": 2, "peak_mib_block1": 7},
    ]
    assert merge(data) == {"seconds_block1": 1.5, "peak_mib_block1": 7}
    assert merge([*data, {"seconds_block2": 4, "busy_process2": 0.5}]) == {
        "seconds_block1": 1.5,
        "peak_mib_block1": 7,
        "seconds_block2": 4,
        "busy_process2": 0.5,
    }


def test_what_was_seen_goes_on_in_other_processes(clock) -> None:
    """Of two processes with blocks 1, 2 and 3, 4; then with blocks 1 to 3 and 4."""
    before = [Observer(CPU, first=first) for first in (0, 2)]
    for first, observer in enumerate(before):
        observe_updates(observer, clock, (9, 9), (first, 1), (first, 1), batches=1)
        observer.begin(4, look=True)
        observer.grad_norm(0, torch.tensor(0.5))
    whole = merge(observer.record() for observer in before)
    state = merge_states([observer.state_dict() for observer in before])
    after = [Observer(CPU, first=first) for first in (0, 3)]
    for observer, end in zip(after, (3, 4), strict=True):
        observer.load_state_dict(state, end)
    assert [len(observer.record()) for observer in after] == [5, 1]
    assert merge(observer.record() for observer in after) == whole
    assert whole["seconds_block3"] == 4


# What a run leaves


def test_an_epochs_line_tells_of_every_block(tmp_path, capsys) -> None:
    train_here(*flags(write_images(tmp_path / "data"), tmp_path, "--epochs", "2"))
    first, second = load_log(tmp_path / "run")
    for line in (first, second):
        assert all(line[f"{name}{j}"] > 0 for name in PER_BLOCK for j in (1, 2, 3, 4))
    assert first["peak_mib_block1"] == second["peak_mib_block1"]
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()["scalars"]
    assert {f"{name}{j}" for name in PER_BLOCK for j in (1, 2, 3, 4)} <= set(shown)
    report = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert report[0].split("  ")[-5:] == [
        "train loss",
        "top-1 %",
        "grad norm",
        "time %",
        "peak MiB",
    ]
    shares = [float(row.split()[-2]) for row in report[2:]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert float(report[2].split()[-1]) == pytest.approx(second["peak_mib_block1"], abs=0.1)
