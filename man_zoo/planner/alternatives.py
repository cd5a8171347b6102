"""What people do instead of local learning, each metered on its own training step.

All train the whole network by one loss with one optimizer. The steps are real ones on fake
tensors, so their memory is the meter's and not the planner's sum of pieces.

Sources: gradient checkpointing as timm's ``set_grad_checkpointing`` does it; accumulation as timm's
and Accelerate's loops do it; ``torch._functorch.config.activation_memory_budget``; torchao's
``AdamW8bit`` (Dettmers et al., arXiv:2110.02861).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config

from ..arithmetic import flop_counter
from ..meter import LiveBytes
from ..target import acting_as
from .dense import network_of
from .fake_mode import QuickFakeMode
from .optimizer import create_optimizer
from .piece import bytes_of, without_data
from .planner import Planner
from .ratios import BesideEndToEnd
from .setting import Setting


@dataclass(frozen=True)
class Alternative:
    """A way to train end to end.

    Args:
        checkpointed: Recompute as timm's ``set_grad_checkpointing`` does.
        slices: Accumulate gradients over this many slices of the batch.
        activation_budget: torch.compile's, from 0 (save the inputs alone) to 1 (save what is
            fastest); not compiled if left out.
        small_state: Keep the optimizer's state in 8 bits, as torchao's ``AdamW8bit`` does.
    """

    checkpointed: bool = False
    slices: int = 1
    activation_budget: float | None = None
    small_state: bool = False


class Cost(NamedTuple):
    """Of a training step.

    Args:
        peak: Most bytes alive.
        saved: Bytes that autograd keeps from the forward to the backward pass.
        flops: Arithmetic; 0 where it was not counted.
    """

    peak: int
    saved: int
    flops: int

    @property
    def total(self) -> int:
        """Arithmetic of the whole step, as a plan's cost has it."""
        return self.flops


@dataclass(frozen=True)
class Metered(BesideEndToEnd[Cost]):
    """An alternative beside end to end.

    Args:
        cost: Of its training step.
        end_to_end: Of end to end's.
    """

    cost: Cost
    end_to_end: Cost


@dataclass(frozen=True)
class Refused:
    """An alternative that a backbone does not take.

    Args:
        reason: In a sentence.
    """

    reason: str


class NotInOneGraph(ValueError):
    """torch.compile makes several graphs of a backbone, or none."""


END_TO_END = Alternative()
CHECKPOINTED = "checkpointed"
SLICES = (4, 8)


def alternatives(opt: str, slices: Sequence[int] = SLICES) -> dict[str, Alternative]:
    """By name; 8-bit state where there is such an optimizer, and torchao to provide it.

    Args:
        opt: timm's name of the optimizer.
        slices: Numbers of slices that a batch may be taken in.
    """
    ways = {CHECKPOINTED: Alternative(checkpointed=True)}
    ways |= {
        f"{CHECKPOINTED}, {n} slices": Alternative(checkpointed=True, slices=n) for n in slices
    }
    ways["torch.compile, budget 0.5"] = Alternative(activation_budget=0.5)
    if opt == "adamw" and find_spec("torchao"):
        ways["8-bit state"] = Alternative(small_state=True)
        ways[f"{CHECKPOINTED}, 8-bit state"] = Alternative(checkpointed=True, small_state=True)
    return ways


def alternatives_of(planner: Planner) -> dict[str, Alternative]:
    """Those that the planner's batch can be trained in."""
    images, least = planner.setting.batch_size, planner.task.least_images
    return alternatives(planner.setting.opt, [n for n in SLICES if images // n >= least])


def meter_alternatives(planner: Planner) -> dict[str, Metered | Refused]:
    """Every alternative for the planner's backbone and setting, by name."""
    end_to_end = meter_step(planner, END_TO_END)
    metered: dict[str, Metered | Refused] = {}
    for name, way in alternatives_of(planner).items():
        try:
            metered[name] = Metered(meter_step(planner, way), end_to_end)
        except NotInOneGraph as error:
            metered[name] = Refused(str(error))
    return metered


def meter_step(planner: Planner, way: Alternative, arithmetic: bool = True) -> Cost:
    """What a training step costs for the planner's backbone and setting.

    Args:
        planner: Says both; nothing is planned.
        way: To train.
        arithmetic: Whether to count that as well, which takes as long again.

    Raises:
        NotInOneGraph: Where it is to be compiled, and torch does not make one graph of it.
    """
    network = network_of(planner.backbone, planner.task, planner.input_size)
    with QuickFakeMode(), acting_as(planner.setting.device):
        step = _Step(planner, way, network)
        live = LiveBytes().track(*step.resident)
        counted = _Counted(live)
        if way.activation_budget is not None:
            saved = step.run_compiled(counted, live, way.activation_budget)
        else:
            with live:
                saved = step.run(step.model, live)
            if arithmetic:
                # Alone: while arithmetic is counted, recomputed activations stay alive.
                counted = _Counted(nullcontext())
                with counted:
                    step.run(step.model, live)
    planner.progress()
    peak = live.peak + (state_in_8_bits(network) if way.small_state else 0)
    flops = counted.flops * planner.setting.batch_size // (len(step.images) * step.rounds)
    return Cost(peak, saved, flops)


def fixed_bytes(planner: Planner, way: Alternative) -> int:
    """Bytes that do not grow with the batch: weights, optimizer state, gradients accumulated."""
    network = network_of(planner.backbone, planner.task, planner.input_size)
    with QuickFakeMode():
        step = _Step(planner, way, network)
        weights = LiveBytes().track(step.model).current
        return LiveBytes().track(step.model, step.optimizer).current + weights * (way.slices > 1)


class _Step:
    """A training step end to end on fake tensors, its optimizer's state already there."""

    def __init__(self, planner: Planner, way: Alternative, network: nn.Module) -> None:
        setting = planner.setting

        def fake() -> Any:
            return without_data(network, "cpu", setting.memory_format)

        self.model = fake().train()
        if way.checkpointed:
            self.model.set_grad_checkpointing()
        self.criterion = planner.criterion or planner.task.criterion()
        self.autocast = setting.autocast
        # Only a slice of the batch is there at a time. From the second on all are alike, with the
        # gradients of those before.
        self.rounds = min(way.slices * setting.grad_accum_steps, 2)
        size = -(-setting.batch_size // way.slices)
        self.images, self.target = setting.some_batch(size, planner.input_size, planner.task)
        self.optimizer = None if way.small_state else self._settled(setting)
        averaged = fake() if setting.model_ema else None
        self.resident = (self.model, self.optimizer, self.images, self.target, averaged)

    def _settled(self, setting: Setting) -> torch.optim.Optimizer:
        optimizer = create_optimizer(self.model, setting.opt, setting.opt_kwargs, setting.device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return optimizer

    def run(self, forward: Callable[[Tensor], Tensor], live: LiveBytes) -> int:
        """All slices forward and backward, and the update; the bytes that the last one saved."""
        saved = self.passes(forward, live)
        self.update()
        return saved

    def run_compiled(self, counted: _Counted, live: LiveBytes, budget: float) -> int:
        """The same with the graphs that torch makes within the budget, operator by operator."""
        from torch._dynamo.backends.debugging import aot_eager_decomp_partition_with_mode

        # Dynamo gives up on code that it has compiled for many models.
        torch._dynamo.reset()
        backend = partial(aot_eager_decomp_partition_with_mode, mode=counted)
        with functorch_config.patch(activation_memory_budget=budget):
            # In one graph, because what is between graphs would not be counted.
            compiled = torch.compile(self.model, backend=backend, fullgraph=True)
            try:
                saved = self.passes(compiled, live)
            except TorchDynamoException as error:
                why = str(error).strip().splitlines()[0]
                raise NotInOneGraph(f"torch.compile makes no single graph of it: {why}.") from error
        with live:
            self.update()
        return saved

    def passes(self, forward: Callable[[Tensor], Tensor], live: LiveBytes) -> int:
        saved = 0
        for _ in range(self.rounds):
            before = live.current
            with self.autocast():
                loss = self.criterion(forward(self.images), self.target)
            saved = live.current - before
            loss.backward()
            del loss
        return saved

    def update(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad()


class _Counted:
    """Counts arithmetic within another mode; can be entered again and again, and adds up."""

    def __init__(self, mode: Any) -> None:
        self.mode, self.flops = mode, 0

    def __enter__(self) -> None:
        self._within = ExitStack()
        self._arithmetic = self._within.enter_context(flop_counter())
        self._within.enter_context(self.mode)

    def __exit__(self, *error: Any) -> None:
        self._within.__exit__(*error)
        self.flops += self._arithmetic.get_total_flops()


def state_in_8_bits(network: nn.Module) -> int:
    """Bytes of torchao's ``AdamW8bit`` state for a network: codes, scales and tables of values.

    Raises:
        ImportError: Without torchao.
    """
    from torchao.optim import AdamW8bit

    learning = [p for p in without_data(network, "meta").parameters() if p.requires_grad]
    optimizer = AdamW8bit(learning)
    # Its step would compile a kernel for every shape, so only the state that a step makes.
    state = [optimizer._new_buffer(p, signed) for p in learning for signed in (True, False)]
    tensors = [
        getattr(buffer, name)
        for buffer in state
        for name in getattr(buffer, "tensor_attrs", ["data"])
    ]
    return sum(bytes_of(tensor) for tensor in tensors)
