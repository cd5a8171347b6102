"""Blocks on several processes: who gets which, what each holds, and what is expected of it."""

import copy
import random
import re
from dataclasses import fields
from itertools import combinations, pairwise

import pytest
import timm
import torch
from torch import Tensor, nn

import man_zoo
from man_zoo.auxiliary import MomentumLink
from man_zoo.commands import plan as plan_command
from man_zoo.console import UserError
from man_zoo.meter import fake, measure
from man_zoo.planner import Planner, Setting, assign, place
from man_zoo.planner.blocks import RunCost

SIZES = {"resnet18": 64, "resnet32": 32, "resnet101": 64, "vit_tiny_patch16_224": 224}
BATCH = 32
METHODS = [("dgl", {}), ("man_dgl", {}), ("man_dgl", {"form": "release"}), ("man_infopro", {})]
SPLITS = [("resnet32", 16, 2), ("vit_tiny_patch16_224", 4, 2), ("resnet101", 4, 4)]
QUICK = [("resnet32", METHODS[1]), ("resnet32", METHODS[3]), ("vit_tiny_patch16_224", METHODS[2])]
CASES = [
    pytest.param(*split, *method, marks=[] if (split[0], method) in QUICK else pytest.mark.slow)
    for split in SPLITS
    for method in METHODS
]


def planner(backbone: str, method: str, batch_size: int = BATCH, **keywords) -> Planner:
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=10)
    shape = (3, SIZES[backbone], SIZES[backbone])
    return Planner(model, backbone, method, keywords, shape, Setting(batch_size))


class Process:
    """What a process does in a slot: its blocks on a batch that came in, while the last is sent.

    Args:
        model: Under ``FakeTensorMode``.
        own: Its blocks.
        mirror: Of the next process's first units, where MAN follows them.
    """

    def __init__(self, model: man_zoo.LocalModel, own: range, mirror: nn.Module | None) -> None:
        count = len(model.blocks)
        self.blocks = [model.blocks[j] for j in own]
        self.links = model.links[own.start : own.stop - 1]
        if mirror is not None:
            self.links += [MomentumLink(mirror, self.blocks[-1].output.momentum)]
        self.optimizers = [
            torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9) for block in self.blocks
        ]
        self.sent: list[Tensor | None] = []  # of the last batch, until this one is done
        self.resident = [self.blocks, self.optimizers, mirror, self.sent]
        self.final = own.stop == count
        looks = [auxiliary.needs_image for auxiliary in model.auxiliaries] + [False]
        self.looks = any(looks[own.start : own.stop])
        self.next_looks = not self.final and looks[own.stop]
        self.images = BATCH, *model.input_size
        features = torch.empty(self.images)
        with torch.no_grad():
            for block in model.blocks[: own.start]:
                features = block.units(features)
        self.incoming = features.shape
        if own.start:
            self.resident.append(self.receive())  # the next batch, from the process before

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        image = torch.empty(self.images) if self.looks else None
        return torch.empty(self.incoming), torch.empty(BATCH, dtype=torch.long), image

    def step(self) -> None:
        received, target, image = self.receive()
        features = received
        for j, (block, optimizer) in enumerate(zip(self.blocks, self.optimizers, strict=True)):
            features, loss, _ = block(features, target, image)
            if self.final and block is self.blocks[-1]:
                del features
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
            if j < len(self.links):
                self.links[j].update()
        del received
        if not self.final:
            self.sent[:] = [features, target, image if self.next_looks else None]


@pytest.mark.parametrize(("backbone", "k", "processes", "method", "keywords"), CASES)
def test_the_predicted_cost_of_a_process_is_that_of_its_real_step(
    backbone, k, processes, method, keywords
):
    model = man_zoo.localize(
        backbone, method, k, num_classes=10, img_size=SIZES[backbone], **keywords
    ).train()
    placement = place(model, Setting(BATCH, device="cpu"), processes)
    assert [j for own in placement.ranges for j in own] == list(range(k))
    sources = [copy.deepcopy(link.source) for link in model.links]
    with fake((model, sources)) as (model, sources):
        for own, size, flops in zip(
            placement.ranges, placement.bytes, placement.flops, strict=True
        ):
            followed = own.stop <= len(sources)
            process = Process(model, own, sources[own.stop - 1] if followed else None)
            cost = measure(process.step, resident=process.resident)
            assert size == pytest.approx(cost.peak_bytes, rel=0.01)
            assert flops == pytest.approx(cost.flops, rel=1e-6)


def block_cost(**sizes: int) -> RunCost:
    """Nothing but what is given."""
    names = [field.name for field in fields(RunCost) if field.name != "seconds"]
    return RunCost(**dict.fromkeys(names, 0) | sizes)


def random_blocks(rng: random.Random, count: int) -> list[RunCost]:
    names = ["flops", "resident", "input", "output", "target", "image", "source", "turn", "later"]
    return [block_cost(**{name: rng.randint(1, 100) for name in names}) for _ in range(count)]


def every_way(count: int, processes: int) -> list[list[range]]:
    """Of dividing blocks among processes."""
    return [
        [range(start, stop) for start, stop in pairwise((0, *inner, count))]
        for inner in combinations(range(1, count), processes - 1)
    ]


def bytes_of_each(blocks: list[RunCost], ranges: list[range]) -> list[int]:
    """What processes hold, spelled out."""
    sizes = []
    for own in ranges:
        first, *later = [blocks[j] for j in own]
        comes = first.input + first.target + max(blocks[j].image for j in own)
        size = sum(blocks[j].resident for j in own) + comes
        size += comes if own.start else 0  # the next batch arrives meanwhile
        size += max(first.turn, *(block.later for block in later), 0)
        if own.stop < len(blocks):
            following = blocks[own.stop]
            sent = blocks[own.stop - 1].output + following.target + following.image
            size += sent + following.source
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_to_divide_the_blocks_is_faster(seed):
    rng = random.Random(seed)
    count = rng.randint(3, 9)
    processes = rng.randint(1, count)
    blocks = random_blocks(rng, count)
    ways = every_way(count, processes)
    sizes = [bytes_of_each(blocks, way) for way in ways]
    limits = [size + rng.randint(0, 50) for size in rng.choice(sizes)]
    slots = [
        max(sum(blocks[j].flops for j in own) for own in way)
        for way, size in zip(ways, sizes, strict=True)
        if all(own <= limit for own, limit in zip(size, limits, strict=True))
    ]
    placement = assign(blocks, processes, limits)
    usual, longer = (assign(blocks, processes, queue=queue) for queue in (1, 3))
    assert longer.ranges == usual.ranges
    waiting = zip(longer.bytes, usual.bytes, longer.sent, strict=True)
    assert all(more - less == 2 * sent for more, less, sent in waiting)
    assert placement.slot == min(slots)
    assert list(placement.bytes) == bytes_of_each(blocks, list(placement.ranges))
    assert placement.speed_up == sum(block.flops for block in blocks) / min(slots)
    assert max(placement.busy) == 1


def test_limits_are_of_each_process():
    block = block_cost(flops=1, resident=100)
    assert [len(own) for own in assign([block] * 5, 2, [400, 100]).ranges] == [4, 1]
    assert [len(own) for own in assign([block] * 5, 2, [100, 400]).ranges] == [1, 4]


@pytest.mark.parametrize(
    ("processes", "limits", "sentence"),
    [
        (6, [], "6 processes need as many blocks, and there are 5; use 1 to 5"),
        (3, [1, 2], "2 limits of memory were given for 3 processes; give one for all, or 3"),
        (
            2,
            [3 * 2**30, 2**29],
            r"at best process 2 needs 1\.00 GiB for block 5 and has 0\.50 GiB",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(processes, limits, sentence):
    with pytest.raises(ValueError, match=sentence):
        assign([block_cost(flops=1, resident=2**30)] * 5, processes, limits)


def every_spread(plans: Planner, k: int, processes: int) -> list[tuple[int, int]]:
    """Largest bytes and arithmetic of a process, for all cuts and ways to divide the blocks."""
    found = []
    for cuts in combinations(plans.names[:-1], k - 1):
        blocks = plans.cuts(k, cuts).cost.blocks
        for way in every_way(k, processes):
            flops = max(sum(blocks[j].flops for j in own) for own in way)
            found.append((max(bytes_of_each(blocks, way)), flops))
    return found


@pytest.mark.parametrize(
    ("k", "processes", "method", "tight"),
    [(3, 3, "man_dgl", False), (4, 2, "man_dgl", True), (4, 3, "infopro", True)],
)
def test_no_other_cuts_make_the_slowest_process_faster(k, processes, method, tight):
    plans = planner("resnet18", method, 256)
    every = every_spread(plans, k, processes)
    limit = min(every)[0] if tight else 2**40
    best = min(flops for size, flops in every if size <= limit)
    assert (best > min(flops for _, flops in every)) is tight
    plan = plans.spread(processes, k, [limit])
    assert plan.spec.k == k
    assert assign(plan.cost.blocks, processes, [limit]).slot == best


def test_a_block_a_process_or_as_few_as_fit():
    plans = planner("resnet18", "man_dgl", 256)
    assert plans.spread(3).spec.k == 3
    limit = min(every_spread(plans, 2, 2))[0] - 1
    with pytest.raises(ValueError, match="2 processes do not fit into their memory: at best"):
        plans.spread(2, 2, [limit])
    k = plans.spread(2, limits=[limit]).spec.k
    assert k > 2
    assert all(min(every_spread(plans, fewer, 2))[0] > limit for fewer in range(3, k))


def test_units_that_are_recomputed_make_room():
    plans = planner("resnet18", "man_dgl", 256)
    usual, recomputed = (plans.spread(2, recompute=names) for names in (None, "all"))
    sizes = [max(assign(plan.cost.blocks, 2).bytes) for plan in (usual, recomputed)]
    assert sizes[1] < sizes[0]
    assert recomputed.spec.recompute[-1] == "auxiliaries.0"


def test_blocks_are_long_enough_for_what_is_copied_of_them():
    plans = planner("resnet18", "man_dgl", momentum_units=3)
    assert plans.spread(3).spec.k == 3
    with pytest.raises(ValueError, match="9 units cannot be cut into 6 blocks for man_dgl"):
        plans.spread(6)


COMMAND = ["resnet20_man_dgl_k4", "--batch-size", "16"]


def planned(capsys, *flags: str) -> str:
    plan_command.run(plan_command.build_parser().parse_args([*COMMAND, *flags]))
    return capsys.readouterr().out


def test_the_command_says_what_to_expect(capsys):
    out = planned(capsys, "--processes", "2", "--memory", "1GiB,2GiB", "--cuts", "even")
    table = out.split("busy\n")[1]
    assert "1  stem to " in table
    assert "1.00" in table
    assert "2.00" in table
    busy = [float(line.split()[-1]) for line in table.splitlines()[1:3]]
    slot, faster = (float(x) for x in re.findall(r"takes (\S+) of .*?: (\S+) times", out)[0])
    assert max(busy) == 1
    links = [line.split()[-4:-2] for line in table.splitlines()[1:3]]
    # 32 channels of 16 x 16 pixels, and a unit of two convolutions and two BatchNorms.
    assert links == [["0.50", f"{4 * (2 * 9 * 32 * 32 + 4 * 32) / 2**20:.2f}"], ["0.00", "0.00"]]
    assert sum(busy) == pytest.approx(faster, abs=0.02)
    assert slot * faster == pytest.approx(1, abs=0.02)
    assert "1F1B with 8 micro-batches would leave every process idle for 11.1% of a step" in out
    free = re.findall(r": (\S+) times", planned(capsys, "--processes", "2"))[0]
    assert float(free) >= faster


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--processes", "5"], "5 processes need a block each, but k=4"),
        (["--processes", "5", "--cuts", "even"], "5 processes need as many blocks"),
        (["--processes", "2", "--memory", "1GiB,2GiB,3GiB"], "3 limits of memory were given"),
        (["--processes", "2", "--memory", "9MiB,9MiB"], r"at best process \d needs .* for \S+ to"),
        (["--memory", "3GiB"], "--memory is the limit of each of several --processes"),
        (["--processes", "2", "--budget", "3GiB"], "--budget is for one process"),
    ],
)
def test_the_command_refuses_in_a_sentence(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        plan_command.run(plan_command.build_parser().parse_args([*COMMAND, *flags]))
