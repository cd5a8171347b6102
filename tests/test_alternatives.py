"""What people do instead of local learning, and the largest size that fits, against real steps."""

from dataclasses import replace
from math import sqrt

import pytest
import timm
import torch
from test_planner import metered, planner
from torch import nn

import man_zoo
from man_zoo.commands.plan import main
from man_zoo.meter import LiveBytes, backprop_cost
from man_zoo.planner import Planner, Setting, largest
from man_zoo.planner.affine import last_within
from man_zoo.planner.alternatives import END_TO_END, Alternative, alternatives_of, meter_step
from man_zoo.planner.compare import compare, draw, render

MIB = 2**20


def real_step(slices: int, batch: int) -> int:
    """Peak bytes of ResNet-18's checkpointed step on real tensors, gradients accumulated."""
    model = timm.create_model("resnet18", num_classes=10).train()
    model.set_grad_checkpointing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, target = torch.randn(batch // slices, 3, 64, 64), torch.zeros(batch // slices).long()

    def step():
        for _ in range(slices):
            nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with LiveBytes() as live:
        live.track(model, optimizer, images, target)
        step()
    return live.peak


@pytest.mark.parametrize("slices", [1, 4])
def test_accumulated_steps_cost_what_real_ones_do(slices):
    cost = meter_step(
        planner("resnet18", "dgl", 64, "sgd", "no", "cpu"),
        Alternative(checkpointed=True, slices=slices),
    )
    assert cost.peak == pytest.approx(real_step(slices, 64), rel=0.001)


def test_arithmetic_is_that_of_the_whole_batch():
    plans = planner("resnet18", "dgl", 64)
    known = backprop_cost(timm.create_model("resnet18", num_classes=10), (64, 3, 64, 64))
    whole = meter_step(plans, END_TO_END)
    assert (whole.peak, whole.flops) == known
    for way in (Alternative(slices=4), Alternative(activation_budget=1.0)):
        assert meter_step(plans, way).flops == pytest.approx(known.flops, rel=0.01)


def test_an_activation_budget_is_kept():
    plans = planner("resnet18", "dgl", 64)
    all_saved, half = (meter_step(plans, Alternative(activation_budget=b)) for b in (1.0, 0.5))
    assert 0 < half.saved < 0.55 * all_saved.saved < all_saved.peak


class Breaks(nn.ReLU):
    """No graph goes through it."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


def test_a_network_that_is_no_single_graph_says_so_in_its_row(tmp_path):
    plans = planner("resnet20", "dgl", 4)
    plans.backbone.act1 = Breaks(inplace=True)
    rows = compare(plans, 2)
    (line,) = (line for line in render(rows).splitlines() if "torch.compile" in line)
    assert "makes no single graph of it: " in line
    assert rows["checkpointed"].arithmetic_ratio > 1
    draw(plans, {}, rows, tmp_path / "picture.png")
    ways = {"compiled": Alternative(activation_budget=0.5), "end to end": END_TO_END}
    compiled, end_to_end, _ = largest(plans, "batch", 20 * MIB, k=2, ways=ways)
    assert (compiled.size, compiled.reason) == (0, rows["torch.compile, budget 0.5"].reason)
    assert end_to_end.size > 0


def test_the_state_of_8_bit_adamw_is_a_quarter():
    plans = planner("resnet18", "dgl", 256, "adamw")  # whose peak is no update
    state = 2 * sum(p.numel() * 4 for p in plans.backbone.parameters())
    full, small = (meter_step(plans, Alternative(small_state=s)).peak for s in (False, True))
    assert full - small == pytest.approx(0.75 * state, rel=0.05)


def test_the_next_larger_batch_does_not_fit():
    budget = 160 * MIB
    plans = planner("resnet18", "man_dgl", 64, form="paper")
    plans.setting = replace(plans.setting, device="cpu")  # as the meter's step
    ways = {"slices": Alternative(checkpointed=True, slices=4)}
    rows = {row.name: row for row in largest(plans, "batch", budget, k=2, ways=ways)}
    plan, batch = rows["man_dgl, as planned"].plan, rows["man_dgl, as planned"].size
    assert plan.setting.batch_size == batch
    assert plan.cost.peak <= budget < plans.resized(batch_size=batch + 1).smallest(2).cost.peak
    model = man_zoo.localize("resnet18", "man_dgl", num_classes=10, img_size=64, **plan.keywords())
    assert metered(model, batch, "sgd", "no", "cpu").peak_bytes <= 1.003 * budget
    assert metered(model, batch + 1, "sgd", "no", "cpu").peak_bytes > budget
    slices = rows["slices"].size
    assert slices % 4 == 0
    assert real_step(4, slices) <= budget < real_step(4, slices + 4)


def test_the_next_larger_image_does_not_fit():
    budget = 500 * MIB
    plans = planner("vit_tiny_patch16_224", "dgl", 16)
    ways = {"end to end": END_TO_END, "checkpointed": Alternative(checkpointed=True)}
    rows = {row.name: row for row in largest(plans, "image", budget, k=2, ways=ways)}
    for name, way in ways.items():
        side = rows[name].size
        assert side % 16 == 0
        peaks = [meter_step(plans.resized(side=s), way).peak for s in (side, side + 16)]
        assert peaks[0] <= budget < peaks[1]
    assert rows["checkpointed"].size > rows["end to end"].size


@pytest.mark.parametrize("start", [1, 7, 500])
@pytest.mark.parametrize("power", [1, 2])
def test_few_sizes_are_looked_at(start, power):
    looked_at = []

    def peak(n: int) -> int:
        looked_at.append(n)
        return 1000 + max(3 * n**power, 5 * n**power - 200)

    found = last_within(peak, 5000, start, power=power)
    assert found == int((4200 / 5) ** (1 / power))
    assert len(looked_at) <= 6
    assert last_within(peak, 900, start, power=power) == 0


def test_steps_that_no_line_foretells_are_found_as_well():
    assert last_within(lambda n: 10 if n < 123 else 20, 15, 1000) == 122
    assert last_within(lambda n: int(1000 * sqrt(n)), 100_000, 3) == 10_000


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--largest", "batch"], "--largest needs --budget"),
        (["--largest", "batches", "--budget", "1GiB"], "Unknown size 'batches'; expected batch"),
        (["--largest", "batch", "--budget", "20MiB"], "its weights alone take 0.04 GiB"),
        (["--largest", "batch", "--budget", "1GiB", "--cuts", "even"], "drop --cuts"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(flags, sentence, capsys):
    assert main(["resnet18", "--method", "dgl", *flags]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_batch_is_not_cut_into_more_slices_than_images():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    about = (model, "resnet18", "dgl", {}, (3, 64, 64))
    few, more = (alternatives_of(Planner(*about, Setting(count))) for count in (6, 8))
    assert [name for name in more if name not in few] == ["checkpointed, 8 slices"]


def test_a_backbone_of_one_image_size_says_so():
    with torch.device("meta"):
        model = timm.create_model("mixer_b16_224")
    plans = man_zoo.planner.Planner(
        model, "mixer_b16_224", "dgl", {}, (3, 224, 224), man_zoo.planner.Setting(2)
    )
    with pytest.raises(ValueError, match="takes images of 224x224 pixels only"):
        largest(plans, "image", 8 * 2**30)
