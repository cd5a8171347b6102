"""By hand: what a plan saves of a process's resident memory, on real images.

``python tests/resident.py FOLDER`` trains ResNet-50 for two steps, end to end and as planned, each
in a process of its own, and prints how much more memory the process held at its peak than before
there was a model, beside what the planner says. Images come from a folder of JPEG files, made 224
pixels wide.
"""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from torchvision.transforms.functional import pil_to_tensor

import man_zoo
from man_zoo.console import table
from man_zoo.planner import Planner, Setting, budget_bytes
from man_zoo.planner.sizes import MIB

BATCH, STEPS = 16, 2
# The C library keeps what was freed for later; a tensor's memory is to go back at once.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
WAYS = {
    "end to end": {"method": "e2e"},
    "end to end within 0.9 GiB": {"method": "e2e", "memory_budget": "0.9GiB"},
    "man_dgl within 0.8 GiB": {"method": "man_dgl", "memory_budget": "0.8GiB"},
}


def read_images(folder: Path) -> torch.Tensor:
    """The first images of a folder, ``(B, 3, 224, 224)``."""
    files = islice(sorted(folder.rglob("*.jp*g")), BATCH)
    images = [pil_to_tensor(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    return torch.stack(images).float().div(255)


def resident(key: str) -> int:
    """Bytes of this process: ``VmRSS`` now, or ``VmHWM``, the most there ever were."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def train(way: str, folder: Path) -> None:
    """Two steps; prints what was planned and what was held, as JSON."""
    options, step = WAYS[way], {"batch_size": BATCH, "device": "cpu"}
    with torch.device("meta"):
        backbone = timm.create_model("resnet50", num_classes=10)
    shape = (3, 224, 224)
    planner = Planner(backbone, "resnet50", options["method"], {}, shape, Setting(**step))
    budget = options.get("memory_budget")
    plan = planner.within(budget_bytes(budget)) if budget else planner.end_to_end()
    before = resident("VmRSS")
    model = man_zoo.localize("resnet50", num_classes=10, **options, **step).train()
    optimizers = [create_optimizer_v2(block, "sgd", lr=0.01) for block in model.blocks]
    images, target = read_images(folder), torch.arange(BATCH) % 10

    def update(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    for _ in range(STEPS):
        model.local_step(images, target, step=update)
    print(json.dumps([plan.cost.peak, resident("VmHWM") - before]))


def main() -> None:
    if len(sys.argv) == 3:
        train(sys.argv[2], Path(sys.argv[1]))
        return
    rows, first = [], None
    for way in WAYS:
        command = [sys.executable, __file__, sys.argv[1], way]
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | GIVES_BACK
        ).stdout
        planned, held = json.loads(output.splitlines()[-1])
        first = first or (planned, held)
        ratios = f"{planned / first[0]:.3f}", f"{held / first[1]:.3f}"
        rows.append((way, f"{planned / MIB:.0f}", f"{held / MIB:.0f}", *ratios))
    print(table(("", "planned MiB", "held MiB", "planned ratio", "held ratio"), rows))


if __name__ == "__main__":
    main()
