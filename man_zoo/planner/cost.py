"""What each piece of a split network costs, measured alone on fake tensors and then added up.

A piece is a unit, or what ends a block: an auxiliary or the head. It is run forward and backward
once, under the rules of :mod:`man_zoo.meter`, and any block is a sum of pieces: that is why every
cut of a ResNet-152 can be looked at in seconds, on a machine that could not hold one of its steps.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..auxiliary import Auxiliary
from ..auxiliary.build import build_auxiliary
from ..families import list_units, unit_shapes
from ..meter import LiveBytes, tensors_of
from ..recompute import run
from ..spec import LocalSpec
from .piece import Piece, bytes_of, measure_bytes, without_data

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PLAIN = (bool, int, float, str, tuple, type(None))  # attributes that say what a layer costs


@dataclass(frozen=True)
class Setting:
    """What a training step's memory depends on beside the model.

    Args:
        batch_size: Images a step.
        opt: timm's name of the optimizer; one a block, stepping right after its backward.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` autocast over float32 weights.
    """

    batch_size: int
    opt: str = "sgd"
    precision: str = "no"

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "no":
            return nullcontext()
        return torch.autocast("cpu", LOW_PRECISION[self.precision])


class CostModel:
    """Costs of a backbone's units, and of a method's auxiliaries at any cut.

    Args:
        backbone: A timm model, on any device (``meta`` too); left as it is.
        spec: Method and settings; its K and cuts do not count here.
        input_size: ``(channels, height, width)`` of the images.
        setting: Batch, optimizer, precision.
        criterion: Classification loss.
        progress: Called after every piece that was measured.
    """

    def __init__(
        self,
        backbone: Any,
        spec: LocalSpec,
        input_size: tuple[int, int, int],
        setting: Setting,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.progress = progress
        self.spec, self.setting, self.input_size = spec, setting, input_size
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.shapes = unit_shapes(backbone, input_size)
        self._mode = FakeTensorMode()
        self._of_units: dict[Any, Any] = {}
        self._of_auxiliaries: dict[Any, Any] = {}
        self._meta_units = list_units(without_data(backbone, "meta"))
        with self._mode:
            self._backbone = without_data(backbone, "cpu").train()
            self.units = list_units(self._backbone)
            self._images = torch.empty(setting.batch_size, *input_size)
            self._target = torch.empty(setting.batch_size, dtype=torch.long)
            self._features = self._run_units()
        self.out_bytes = [bytes_of(h) for h in self._features]
        self.image_bytes, self.target_bytes = bytes_of(self._images), bytes_of(self._target)
        self.num_classes = self._backbone.num_classes

    def with_spec(self, spec: LocalSpec) -> "CostModel":
        """The same backbone for another method; what was measured of its units is shared."""
        other = copy.copy(self)
        other.spec, other._of_auxiliaries = spec, {}
        return other

    def _run_units(self) -> list[Tensor]:
        """Output of every unit, for its shape and type."""
        features, h = [], self._images
        with torch.no_grad(), self.setting.autocast():
            for unit in self.units.modules:
                h = unit(h)
                features.append(h)
        return features

    # Pieces ---------------------------------------------------------------------------------------

    def unit(self, i: int, *, first: bool, recompute: bool) -> Piece:
        """Cost of unit ``i``.

        Args:
            i: Its index.
            first: Whether it begins a block: no gradient is asked of its input then.
            recompute: Whether it is recomputed in backward.
        """
        return _remember(
            self._of_units, (i, first, recompute), lambda: self._unit(i, first, recompute)
        )

    def _unit(self, i: int, first: bool, recompute: bool) -> Piece:
        module = self.units.modules[i]
        x = self._features[i - 1] if i else self._images

        def forward(h: Tensor) -> Tensor:
            return run(module, h, recompute=recompute)

        key = (_signature(module), x.shape, x.dtype, first, recompute)
        return _remember(
            self._of_units,
            key,
            lambda: self._measure(module, forward, x, recompute, not first),
        )

    def output(self, cut: int, place: tuple[int, int], recompute: bool) -> Piece:
        """Cost of what ends a block after unit ``cut``: the head at the last unit, else auxiliary.

        Args:
            cut: Index of the block's last unit.
            place: Which auxiliary it is, from 0, and how many there are.
            recompute: Whether an auxiliary is recomputed in backward.
        """
        if cut == len(self.units) - 1:
            return _remember(self._of_units, "head", self._head)
        return _remember(
            self._of_auxiliaries,
            ("output", cut, place, recompute),
            lambda: self._output(cut, place, recompute),
        )

    def _head(self) -> Piece:
        head, h = self.units.head, self._features[-1]
        return self._measure(head, lambda h: self.criterion(head(h), self._target), h, False)

    def _output(self, cut: int, place: tuple[int, int], recompute: bool) -> Piece:
        h = self._features[cut]

        def measure() -> Piece:
            built = self._build(cut, place, recompute)
            with self._mode:
                auxiliary = without_data(built, "cpu").train()
            return self._measure(
                auxiliary, lambda h: auxiliary(h, self._target, self._images)[0], h, recompute
            )

        key = (_signature(self._auxiliary(cut, place)), h.shape, h.dtype, recompute)
        return _remember(self._of_auxiliaries, key, measure)

    def _auxiliary(self, cut: int, place: tuple[int, int]) -> Auxiliary:
        """The auxiliary on meta tensors, to tell what it costs like."""
        return _remember(
            self._of_auxiliaries, (cut, place), lambda: self._build(cut, place, recompute=False)
        )

    def _build(self, cut: int, place: tuple[int, int], recompute: bool) -> Auxiliary:
        # Not on fake tensors: they cannot be copied, and momentum units copy.
        with torch.device("meta"):
            return build_auxiliary(
                self._meta_units,
                self.shapes,
                cut,
                self.spec,
                self.input_size,
                self.num_classes,
                self.criterion,
                place=place,
                recompute=recompute,
            )

    def _measure(
        self,
        module: nn.Module,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        recompute: bool,
        differentiable: bool = True,
    ) -> Piece:
        def measure() -> Piece:
            return measure_bytes(
                module,
                forward,
                x,
                kept=(self._images, self._target),
                autocast=self.setting.autocast,
                differentiable=differentiable,
            )

        with self._mode, FlopCounterMode(display=False) as arithmetic:
            piece = measure()
        if recompute:
            # Counting arithmetic keeps recomputed activations alive: bytes in a run of their own.
            with self._mode:
                piece = measure()
        self.progress()
        return replace(piece, flops=arithmetic.get_total_flops())

    # What lives through the whole step ------------------------------------------------------------

    @cached_property
    def resident(self) -> int:
        """Bytes of the backbone, its optimizer's state, the images and the target."""
        return self._resident(self._backbone) + self.image_bytes + self.target_bytes

    def unit_resident(self, i: int) -> int:
        """Bytes of unit ``i``, and of its optimizer's state."""
        return _remember(
            self._of_units, ("resident", i), lambda: self._resident(self.units.modules[i])
        )

    @cached_property
    def head_resident(self) -> int:
        """The same of the head."""
        return self._resident(self.units.head)

    def source_bytes(self, start: int) -> int:
        """Bytes of what a block before unit ``start`` copies again after every step, if it does."""
        momentum = self.spec.momentum
        if momentum is None or not momentum.ema:
            return 0
        copied = self.units.modules[start : start + momentum.momentum_units]
        return sum(bytes_of(p) for unit in copied for p in unit.parameters())

    def restored_bytes(self, cut: int, place: tuple[int, int]) -> int:
        """Bytes of the images un-normalised, where the auxiliaries look at them."""
        return self.image_bytes * self._auxiliary(cut, place).needs_image

    def auxiliary_resident(self, cut: int, place: tuple[int, int]) -> int:
        """Bytes of the auxiliary after unit ``cut``, and of its optimizer's state."""
        return _remember(
            self._of_auxiliaries,
            ("resident", cut, place),
            lambda: self._resident(self._auxiliary(cut, place)),
        )

    def _resident(self, module: nn.Module) -> int:
        learning = sum(bytes_of(p) for p in module.parameters() if p.requires_grad)
        weights = sum({id(t): bytes_of(t) for t in tensors_of(module)}.values())
        return weights + round(self._optimizer_costs[0] * learning)

    def step_peak(self, gradients: int, largest: int) -> int:
        """Bytes alive while a block's optimizer steps, beyond what is resident."""
        return gradients + round(self._optimizer_costs[1] * largest)

    @cached_property
    def _optimizer_costs(self) -> tuple[float, float]:
        """State and temporaries of the optimizer, in bytes for each byte of a weight matrix."""
        weight = nn.Linear(256, 256, bias=False)
        optimizer = create_optimizer_v2(weight, opt=self.setting.opt, lr=0.1, weight_decay=1e-4)
        weight.weight.grad = torch.zeros(256, 256)
        optimizer.step()
        state = sum(bytes_of(t) for t in tensors_of(list(optimizer.state.values())))
        with LiveBytes() as live:
            live.track(weight, optimizer)
            before = live.current
            optimizer.step()
        size = bytes_of(weight.weight)
        return state / size, (live.peak - before) / size


def _remember(measured: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    if key not in measured:
        measured[key] = make()
    return measured[key]


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules that cost the same: their types, plain attributes and shapes."""
    return tuple(
        (
            type(layer),
            repr([(k, v) for k, v in vars(layer).items() if isinstance(v, _PLAIN)]),
            tuple((p.shape, p.requires_grad) for p in layer.parameters(recurse=False)),
        )
        for layer in module.modules()
    )
