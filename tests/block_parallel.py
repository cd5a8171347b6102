"""``block_parallel.py FILE [all]``: train cases block-parallel, and each in one process as well.

Run by torchrun with four processes: two pairs share the cases of two. Says, for every case, what of
block-parallel training differs from ``local_step`` in one process: local losses of every step, and
at the end every parameter and buffer. With ``all`` every combination is a case.
"""

import copy
import sys
from collections import deque
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor, nn

import man_zoo
from man_zoo import BlockParallel, LocalModel
from man_zoo.auxiliary import MomentumLink

STEPS, BATCH, SIZE, CLASSES, SEED = 20, 4, 16, 3, 5
METHODS = {
    "dgl": {"method": "dgl"},
    "infopro": {"method": "infopro"},
    "predsim": {"method": "predsim"},
    "auglocal": {"method": "auglocal"},
    "man_dgl, release": {"method": "man_dgl", "form": "release"},
    "man_dgl, paper": {"method": "man_dgl", "form": "paper"},
    "man_infopro": {"method": "man_infopro"},
    "manpp_dgl": {"method": "manpp_dgl"},
}
BACKBONES = {
    "resnet20": {},
    "vit_tiny_patch16_224": {"patch_size": 4, "depth": 8, "embed_dim": 24, "drop_path_rate": 0.3},
}
# Each process trains these blocks of four.
RANGES = {
    2: [range(1), range(1, 4)],
    3: [range(1), range(1, 3), range(3, 4)],
    4: [range(1), range(1, 2), range(2, 3), range(3, 4)],
}
DTYPES = (torch.float64, torch.float32)
ALL = list(product(METHODS, BACKBONES, RANGES, DTYPES, (1,)))
# Every method on every backbone, and in turn every number of processes and every precision.
FEW = [
    (method, backbone, list(RANGES)[i % 3], DTYPES[i % 2], 1)
    for i, (method, backbone) in enumerate(product(METHODS, BACKBONES))
]
# With more batches between neighbours, where copies follow what the next process had before.
FEW += [
    ("dgl", "resnet20", 4, torch.float32, 2),
    ("man_dgl, release", "resnet20", 2, torch.float32, 2),
    ("man_dgl, paper", "resnet20", 4, torch.float64, 3),
]


class LateLink:
    """A link that follows its source as it was some updates before.

    Args:
        link: As it was.
        late: How many updates.
    """

    def __init__(self, link: MomentumLink, late: int) -> None:
        self.link, self.source = link, link.source
        self.before: deque[nn.Module] = deque(maxlen=late + 1)

    def update(self) -> None:
        self.before.append(copy.deepcopy(self.source))
        self.link.source = self.before[0]
        self.link.update()


def create(method: str, backbone: str, dtype: torch.dtype) -> LocalModel:
    """The same model in every process."""
    torch.manual_seed(SEED)
    keywords = METHODS[method] | BACKBONES[backbone]
    k = 5 if method == "auglocal" else 4  # which has a block less in the end
    model = man_zoo.localize(backbone, k=k, num_classes=CLASSES, img_size=SIZE, **keywords)
    return model.train().to(dtype)


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """What the first process, or the only one, trains on."""
    generator = torch.Generator().manual_seed(SEED)
    return [
        (
            torch.randn(BATCH, 3, SIZE, SIZE, dtype=dtype, generator=generator).contiguous(
                memory_format=torch.channels_last
            ),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def train(
    model: LocalModel, parallel: BlockParallel | None, dtype, accumulate: int, slices: int
) -> Tensor:
    """Losses ``(STEPS, blocks)``, as far as this process knows them."""
    blocks = parallel.blocks if parallel else model.blocks
    optimizers = [torch.optim.SGD(b.parameters(), 0.05, 0.9, weight_decay=1e-4) for b in blocks]
    one_step = parallel.step if parallel else model.local_step
    loader = batches(dtype) if parallel is None or parallel.is_first else []
    losses = []
    for number, batch in enumerate(parallel.batches(loader, STEPS) if parallel else loader):
        update = (number + 1) % accumulate == 0

        def step(j: int, update: bool = update) -> None:
            if update:
                optimizers[j].step()
                optimizers[j].zero_grad()

        options = {"key": (SEED, number), "micro_batches": slices}
        output = one_step(*batch, step=step, update_momentum=update, **options)
        losses.append(output.losses)
    if parallel:
        parallel.finish()
    return torch.stack(losses)


def own_state(model: LocalModel) -> dict[str, Tensor]:
    """What this process has of the model."""
    return {name: value for name, value in model.state_dict().items() if not value.is_meta}


def differences(method: str, backbone: str, processes: int, dtype, queue: int, group) -> list:
    """Names of what differs, in the first process; nothing in the others."""
    accumulate = 1 + (processes == 3)  # two batches to an update where there are three
    slices = 1 + (processes == 4 and method != "predsim")  # a batch in two where there are four
    model = create(method, backbone, dtype)
    parallel = BlockParallel(model, RANGES[processes], group, queue=queue)
    mine = train(model, parallel, dtype, accumulate, slices), own_state(model)
    everyone: list = [None] * processes
    dist.all_gather_object(everyone, mine, group)
    if not parallel.is_first:
        return []
    model = create(method, backbone, dtype)
    for own in RANGES[processes][:-1] if model.links else []:
        model.links[own[-1]] = LateLink(model.links[own[-1]], queue - 1)
    losses, state = train(model, None, dtype, accumulate, slices), model.state_dict()
    parts = [part for _, part in everyone]
    held = [name for part in parts for name in part]
    return [
        *(["losses"] if not torch.equal(everyone[-1][0], losses) else []),
        *(
            name
            for _, part in everyone
            for name in part
            if not torch.equal(part[name], state[name])
        ),
        *(f"{name} is nowhere" for name in state if name not in held),
        *(f"{name} is twice there" for name in held if held.count(name) > 1),
    ]


def main(path: str, cases: list) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, results = dist.get_rank(), {}
    # Three last: the fourth process has no part in those groups, and torch counts them.
    for count in (2, 4, 3):
        pairs = [dist.new_group([first, first + 1]) for first in (0, 2)]
        trio = dist.new_group(range(3))
        group = {2: pairs[rank // 2], 3: trio, 4: dist.group.WORLD}[count]
        own = [case for case in cases if case[2] == count]
        if count == 2:
            own += own[-1:] * (len(own) % 2)  # as many groups for both pairs: torch counts them
            own = own[rank // 2 :: 2]
        for case in own if rank < 3 or count != 3 else []:
            results[case] = differences(*case, group)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, results)
    if rank == 0:
        found = {case: [n for part in everyone for n in part.get(case, [])] for case in cases}
        torch.save(found, path)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], ALL if sys.argv[2:] == ["all"] else FEW)
