"""A batch in slices, block by block: the same training as the whole batch, in less memory."""

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.distributed as dist
from test_trainer import GROUP_NORM, assert_close, create, draw, train, values  # noqa: F401
from test_trainer import localize as localize_resnet
from torch import Tensor, nn

import man_zoo
from man_zoo.benchmark import live_cost
from man_zoo.commands.__main__ import main as run_command
from man_zoo.meter import LiveBytes
from man_zoo.micro_batches import normalises_batches
from man_zoo.parallel.block_parallel import BlockParallel
from man_zoo.parallel.data_parallel import Averages, Replica, kept_here
from man_zoo.planner import Planner, Setting, choose_micro_batches

BATCH, SLICES = 6, 4  # slices of 2, 2, 1 and 1 images
VIT = {"backbone": "vit_tiny_patch16_224", "depth": 4, "img_size": 32}
CONVNEXT = {"backbone": "convnext_atto", "img_size": 32}
SAME = {
    "e2e": VIT | {"method": "e2e", "k": 1},
    "dgl": VIT | {"method": "dgl"},
    "infopro": VIT | {"method": "infopro", "head_norm": "group"},
    "overlap_dgl": VIT | {"method": "overlap_dgl"},
    "man_dgl, paper": VIT | {"method": "man_dgl", "form": "paper"},
    "man_dgl, release": CONVNEXT | {"method": "man_dgl", "form": "release", "head_norm": "group"},
}


# The network's keywords, the method's, what is recomputed, slices of a batch of 64.
PLANNED = {
    "weights": (VIT, "overlap_dgl", {}, None, 8),
    "activations": ({"backbone": "resnet20"}, "infopro", {}, None, 4),
    "recomputed": ({"backbone": "resnet20"}, "man_dgl", {"form": "release"}, "units", 2),
}
BATCH_PLANNED = 64


def localize(**keywords) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    return man_zoo.localize(**({"k": 3, "num_classes": 5} | keywords)).double().train()


def batch(images: int = BATCH, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 3, 32, 32, dtype=torch.float64, generator=generator)
    return x, torch.randint(5, (images,), generator=generator)


def two_steps(model: man_zoo.LocalModel, **options) -> list[Tensor]:
    """Losses and logits of two steps, then the parameters."""
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.1) for block in model.blocks]
    seen = []

    def step(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    for seed in (1, 2):
        output = model.local_step(*batch(seed=seed), step=step, **options)
        seen += [output.losses, output.logits]
    return [*seen, *values(model)]


# The same training --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SAME)
def test_slices_train_as_the_whole_batch_does(case):
    model = localize(**SAME[case])
    whole = two_steps(copy.deepcopy(model))
    assert_close(two_steps(model, micro_batches=SLICES), whole)


def test_a_mixed_target_is_sliced_with_its_images():
    model = localize(**SAME["dgl"])
    images, target = batch()
    mixed = torch.nn.functional.one_hot(target, 5).double().roll(1, 0) * 0.3 + 0.14
    whole = copy.deepcopy(model).local_step(images, mixed)
    assert_close(model.local_step(images, mixed, micro_batches=SLICES).losses, whole.losses)


def test_there_are_no_more_slices_than_images():
    model = localize(**SAME["dgl"])
    sizes = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    model.local_step(*batch(3), micro_batches=8)
    assert sizes == [1, 1, 1]


def test_a_block_has_its_update_before_the_next_one_begins():
    model, order = localize(**SAME["dgl"]), []
    for j, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, j=j: order.append(f"forward {j}"))

    def backward(loss: Tensor) -> None:
        order.append("backward")
        loss.backward()

    def step(j: int) -> None:
        order.append(f"step {j}")

    model.local_step(*batch(), micro_batches=2, backward=backward, step=step)
    turns = [[f"forward {j}", "backward"] * 2 + [f"step {j}"] for j in range(3)]
    assert order == [word for turn in turns for word in turn]


def test_random_numbers_differ_from_slice_to_slice_and_follow_from_the_key():
    class Noise(nn.Module):
        def forward(self, features, target, image):
            drawn.append(torch.rand(()).item())
            return features, torch.zeros((), requires_grad=True), None

    def step(**options) -> list[float]:
        drawn.clear()
        man_zoo.local_step([Noise(), Noise()], [], *batch(), **options)
        return list(drawn)

    drawn: list[float] = []
    sliced = step(key=(0, 7), micro_batches=3)
    assert len({*sliced}) == 6
    assert step(key=(0, 7), micro_batches=3) == sliced
    assert step(key=(0, 7)) == [sliced[0], sliced[3]]


# Memory -------------------------------------------------------------------------------------------


def test_an_output_takes_its_inputs_place():
    model = localize(**SAME["dgl"])
    images, target = batch(16)
    features = 16 * 5 * 192 * 8  # tokens, width, bytes
    between = []
    with LiveBytes() as live:
        live.track(model, images, target)
        resident = live.current

        def step(j: int) -> None:
            model.blocks[j].zero_grad()
            between.append(live.current - resident)

        def run(*args):
            between.append(live.current - resident - gradients(model))
            return model.blocks[1](*args)

        blocks = [model.blocks[0], run, model.blocks[2]]
        model.local_step(images, target, blocks=blocks, micro_batches=8, step=step)
    # Of two blocks' features never more than a whole batch, before a slice and after a block.
    assert max(between) < 1.05 * features
    assert len(between) == 11


def gradients(model: nn.Module) -> int:
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


# What is another training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "keywords"), [("man_predsim", {}), ("infopro", {"local_loss": "contrast"})]
)
def test_losses_that_compare_images_refuse(method, keywords):
    model = man_zoo.localize("resnet20", method, 2, **keywords)
    sentence = f"loss of {method} compares the images of a batch with each other, which 2 micro"
    images, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    for owner, call in ((model, model.local_step), (model, one_process(model).step)):
        with pytest.raises(ValueError, match=sentence):
            call(images, target, micro_batches=2)
        assert all(p.grad is None for p in owner.parameters())
    model.local_step(images, target)


def one_process(model: man_zoo.LocalModel) -> BlockParallel:
    return BlockParallel(model, [range(len(model.blocks))])


def test_fewer_than_one_slice_is_refused():
    with pytest.raises(ValueError, match="micro_batches=0 is impossible; expected 1 or more"):
        localize(**SAME["dgl"]).local_step(*batch(), micro_batches=0)


def test_batch_norm_is_ghost_batch_norm():
    model = man_zoo.localize("resnet20", "dgl", 2).train()
    images, target = torch.randn(6, 3, 32, 32), torch.arange(6)
    alone = copy.deepcopy(model)
    for part in (slice(0, 3), slice(3, 6)):
        alone.blocks[0](images[part], target[part])
    model.local_step(images, target, micro_batches=2)
    statistics = [dict(one.backbone.bn1.named_buffers()) for one in (alone, model)]
    torch.testing.assert_close(*statistics)
    assert statistics[0]["num_batches_tracked"] == 2
    assert normalises_batches(model)
    assert not normalises_batches(localize(**SAME["dgl"]))


# In a training run --------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_a_trainer_trains_alike(accumulate, create):  # noqa: F811
    whole = localize_resnet("man_dgl, paper", **GROUP_NORM)
    sliced = copy.deepcopy(whole)
    batches, results = draw(4), []
    for model, more in ((whole, ()), (sliced, ("--micro-batches", "3"))):
        words = ("--lr", "0.05", "--clip-grad", "0.1", "--grad-accum-steps", accumulate, *more)
        trainer = create(model, len(batches), *words)
        losses = train(trainer, batches)
        norms = {k: v for k, v in trainer.observer.record().items() if k.startswith("grad")}
        results.append([losses, norms, values(model)])
    assert_close(*results)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--micro-batches 5 --batch-size 4", "--micro-batches 5 is more than the 4 images"),
        ("--micro-batches 3 --batch-size 4", "expected 6 images or more, or --model-kwargs head"),
    ],
)
def test_slices_that_cannot_be_are_one_sentence(words, sentence, create):  # noqa: F811
    with pytest.raises(ValueError, match=sentence):
        create(localize_resnet(), 4, *words.split())


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_replica_averages_once_a_block(process_group, monkeypatch):
    model, started = localize(**SAME["dgl"]), []
    whole, start = copy.deepcopy(model), Averages.start

    def told(self, bucket):
        started.append(replicas.index(next(r for r in replicas if r.averages is self)))
        return start(self, bucket)

    monkeypatch.setattr(Averages, "start", told)
    whole.local_step(*batch())
    replicas = [Replica(block) for block in model.blocks]

    def step(j: int) -> None:
        replicas[j].averages.wait()

    def accumulating(j: int):
        return kept_here(replicas[j])

    options = {"micro_batches": 3, "step": step, "accumulating": accumulating}
    model.local_step(*batch(), blocks=replicas, **options)
    assert started == [0, 1, 2]
    assert_close([p.grad for p in model.parameters()], [p.grad for p in whole.parameters()])


# Planned ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PLANNED)
def test_the_predicted_cost_is_that_of_a_real_step(case):
    network, method, keywords, recompute, slices = PLANNED[case]
    planner = planner_of(network, method, keywords, slices)
    plan = planner.cuts(3, "even", recompute)
    keywords = keywords | {"cuts": "even", "recompute": recompute, "img_size": 32}
    model = man_zoo.localize(method=method, k=3, num_classes=10, **(network | keywords))
    cost = live_cost(model.train(), planner.setting)
    assert plan.cost.peak == pytest.approx(cost.peak_bytes, rel=0.01)
    assert plan.cost.total == pytest.approx(cost.flops, rel=1e-6)


def planner_of(network: dict, method: str, keywords: dict, slices: int = 1) -> Planner:
    options = dict(network)
    name = options.pop("backbone")
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=10, **options)
    setting = Setting(BATCH_PLANNED, device="cpu", micro_batches=slices)
    return Planner(backbone, name, method, keywords, (3, 32, 32), setting)


def test_the_planner_takes_slices_instead_of_recomputing():
    planner = planner_of(VIT, "dgl", {})
    whole = planner.cuts(2, "even").cost
    budget = planner.smallest(2).cost.peak * 105 // 100
    assert planner.within(budget, 2).arithmetic_ratio > 1.02
    _, plan = choose_micro_batches(planner, budget, 2)
    assert plan.arithmetic_ratio < 1.01
    fewer = planner.with_micro_batches(plan.setting.micro_batches // 2).within(budget, 2)
    assert fewer.cost.total > 1.01 * plan.cost.total
    assert plan.cost.peak <= budget
    assert choose_micro_batches(planner, whole.peak, 2)[1].setting.micro_batches == 1


@pytest.mark.parametrize(
    ("network", "method"), [({"backbone": "resnet20"}, "dgl"), (VIT, "predsim")]
)
def test_the_planner_never_takes_slices_that_train_otherwise(network, method):
    planner = planner_of(network, method, {})
    tight = planner.cuts(2, "even", "all").cost.peak
    _, plan = choose_micro_batches(planner, tight, 2)
    assert plan.setting.micro_batches == 1


def run_plan(capsys, *words: str) -> tuple[int, str]:
    status = run_command(["plan", "--batch-size", "64", *words])
    out, err = capsys.readouterr()
    return status, out + err


def test_a_plan_says_how_to_step_and_what_is_ghost_batch_norm(capsys):
    words = ("resnet20_dgl_k4", "--img-size", "32", "--cuts", "even", "--micro-batches")
    assert "micro" not in run_plan(capsys, *words, "1")[1]
    status, printed = run_plan(capsys, *words, "4")
    assert status == 0
    assert "resnet20_dgl_k4 in 4 micro-batches: " in printed
    assert "model.local_step(images, target, micro_batches=4)" in printed
    assert "Ghost batch norm: BatchNorm takes its statistics of each micro-batch" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("resnet20_predsim_k4 --micro-batches 4", "This loss of predsim compares the images"),
        ("resnet20_dgl_k4 --micro-batches auto", "auto chooses for a --budget; name one"),
        ("resnet20_dgl_k4 --micro-batches 65", "--micro-batches 65 is more than the 64 images"),
        ("resnet20_dgl_k4 --micro-batches 0", "expected a whole number from 1, got '0'"),
        (
            "resnet20_dgl_k4 --budget 1MiB --k 2 --recompute all --micro-batches 8",
            "at batch 64 in 8 micro-batches: the",
        ),
    ],
)
def test_plans_that_cannot_be_are_one_sentence(words, sentence, capsys):
    status, printed = run_plan(capsys, *words.split())
    assert status
    assert sentence in printed
    assert printed.count("\n") == 1
