"""Seconds of each piece on the device at hand: timed once, then kept in a file.

Arithmetic says little about time where maps are large and layers narrow: norms, activations and
copies cost no arithmetic. So a piece is run for real: forward, backward, its optimizer's step, and
the copy's following where there is one. One piece is alive at a time.
"""

import copy
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock
from torch import Tensor, nn

from ..auxiliary import Auxiliary, MomentumLink, MomentumUnit
from ..console import write_json
from ..families import Units, list_units
from ..tasks import Task
from .optimizer import create_optimizer
from .piece import Forward
from .setting import Setting
from .sizes import GIB

# Seconds for which a piece is run after its warm-up; a slow one runs once.
RUN = 0.1


def device_at_hand() -> torch.device:
    """The accelerator, or the CPU without one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """As people know it, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()}'s {device.type} with {torch.get_num_threads()} thread(s)"


def cache_folder() -> Path:
    """``$MAN_ZOO_CACHE``, else a folder beside torch.hub's, where TORCH_HOME or XDG say."""
    chosen = os.environ.get("MAN_ZOO_CACHE")
    return Path(chosen) if chosen else Path(torch.hub.get_dir()).parent / "man_zoo"


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def median_seconds(step: Callable[[], object], run: float) -> float:
    """Of one call, after a warm-up.

    Args:
        step: What to call.
        run: Seconds for which it is called again and again.
    """
    from torch.utils.benchmark import Timer  # slow to import, and speaks of compilers

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=run).median


class Clock:
    """Times the pieces of a backbone that has real weights.

    Args:
        backbone: A timm model, not on ``meta``; left as it is.
        setting: Batch, optimizer, precision.
        input_size: ``(channels, height, width)`` of the images.
        task: What is learnt.
    """

    def __init__(
        self, backbone: Any, setting: Setting, input_size: tuple[int, int, int], task: Task
    ) -> None:
        self.setting, self.device = setting, device_at_hand()
        self.units, self.task = list_units(backbone), task
        self.input_size = input_size
        about = [
            *(platform.node(), platform.machine(), device_name(self.device)),
            *(torch.__version__, torch.get_num_threads(), torch.get_num_interop_threads()),
        ]
        self.file = cache_folder() / f"{_digest(about)}.json"

    @cached_property
    def _known(self) -> dict[str, float]:
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet, or cut short: timed again
            return {}

    def seconds(
        self,
        key: object,
        make: Callable[[Units], nn.Module],
        forward: Forward,
        like: Tensor,
        differentiable: bool,
        needs: int,
    ) -> float:
        """Of a piece's forward, backward and update.

        Args:
            key: Equal for pieces that cost the same, and of a lasting ``repr``.
            make: Builds the piece from real units.
            forward: Runs it.
            like: Shape, strides and type of its input.
            differentiable: Whether a gradient is asked of the input.
            needs: Bytes for which there must be room.

        Raises:
            ValueError: If there is not.
        """
        setting = self.setting
        how = (self.task, setting.opt, sorted(setting.opt_kwargs.items()), setting.precision)
        digest = _digest((key, like.stride(), self.input_size, setting.soft_target, *how))
        if digest not in self._known:
            if needs > free_bytes(self.device):
                raise ValueError(
                    f"A piece takes {needs / GIB:.2f} GiB at batch {setting.batch_size} and "
                    f"{free_bytes(self.device) / GIB:.2f} GiB are free on {self.device}: it cannot "
                    "be timed; use a smaller batch, or plan without calibrate."
                )
            with torch.random.fork_rng():  # who plans draws the same numbers as who does not
                module = make(self.units).to(self.device).to(memory_format=setting.memory_format)
                step = self._step(module.train(), forward, like, differentiable)
                self._keep(digest, median_seconds(step, RUN))
        return self._known[digest]

    def _keep(self, digest: str, seconds: float) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock"):
            known = self._known
            del self._known  # others may have written meanwhile
            self._known.update(known | {digest: seconds})
            write_json(self.file, self._known)

    def _step(
        self, module: nn.Module, forward: Forward, like: Tensor, differentiable: bool
    ) -> Callable[[], None]:
        setting, device = self.setting, self.device
        h = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
        h = h.normal_().requires_grad_(differentiable)
        # Of a slice; of the whole batch for end to end beside it.
        images, target = setting.some_batch(len(like), self.input_size, self.task, device)
        learns = any(p.requires_grad for p in module.parameters())
        # Without a learning rate the weights stay as they are, however often it runs.
        still = dict(setting.opt_kwargs) | {"lr": 0.0}
        optimizers = [create_optimizer(module, setting.opt, still, device.type)] if learns else []
        links = list(_links(module))

        def run() -> Tensor:
            with setting.autocast(device.type):
                return forward(module, h, images, target)

        gradient = torch.ones_like(run())

        def step() -> None:
            h.grad = None
            y = run()
            if y.requires_grad:
                y.backward(gradient)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            for link in links:
                link.update()

        return step


def _links(module: nn.Module) -> Iterator[MomentumLink]:
    """What lets an auxiliary's copy follow units of its own shape."""
    momentum = module.momentum if isinstance(module, Auxiliary) else None
    if isinstance(momentum, MomentumUnit) and momentum.follows:
        yield MomentumLink(copy.deepcopy(momentum.ema), momentum)


def _digest(about: object) -> str:
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]
