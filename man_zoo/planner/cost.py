"""What each piece of a split network costs, measured alone on fake tensors and then added up.

A piece is a unit, or what ends a block: an auxiliary or the head. It is run forward and backward
once, under the rules of :mod:`man_zoo.meter`, and any block is a sum of pieces: that is why every
cut of a ResNet-152 can be looked at in seconds, on a machine that could not hold one of its steps.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..auxiliary import Auxiliary
from ..auxiliary.build import build_auxiliary
from ..families import Units, list_units, unit_shapes
from ..meter import tensors_of
from ..micro_batches import check_micro_batches, normalises_batches
from ..recompute import run
from ..spec import END_TO_END, LocalSpec
from ..target import acting_as
from .arithmetic import Arithmetic
from .optimizer import OptimizerCost, create_optimizer, optimizer_cost, steps_at_once
from .piece import Forward, Piece, bytes_of, measure_bytes, without_data

if TYPE_CHECKING:
    from .seconds import Clock

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PLAIN = (bool, int, float, str, tuple, type(None))  # attributes that say what a layer costs


@dataclass(frozen=True)
class Setting:
    """What a training step's memory depends on beside the model.

    Args:
        batch_size: Images a step.
        opt: timm's name of the optimizer; one a block, stepping right after its backward.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` autocast over float32 weights.
        device: ``"cuda"`` or ``"cpu"``, whose autocast, attention and optimizers are counted.
        opt_kwargs: Keywords of the optimizer; the training recipe's by default.
        grad_accum_steps: Batches to one update. With more than one the gradients of all blocks
            live through the step.
        model_ema: Whether an average of the backbone's weights is kept.
        processes: That average their gradients (DDP), whose buckets live through the step.
        channels_last: Whether weights and images are in channels-last order.
        soft_target: Whether a target is a probability for each class (mixup), not an index.
        micro_batches: Slices of a batch that each block runs one after the other.
    """

    batch_size: int
    opt: str = "sgd"
    precision: str = "no"
    device: str = "cuda"
    opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    grad_accum_steps: int = 1
    model_ema: bool = False
    processes: int = 1
    channels_last: bool = False
    soft_target: bool = False
    micro_batches: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass on the CPU's tensors, within ``acting_as(device)``."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast("cpu", LOW_PRECISION[self.precision])

    @property
    def keeps_gradients(self) -> bool:
        """Whether the gradients of all blocks live through the step."""
        return self.grad_accum_steps > 1 or self.processes > 1

    @property
    def in_slices(self) -> str:
        """Its micro-batches in words, with the word before; nothing where there are none."""
        return f" in {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""

    @property
    def slice_size(self) -> int:
        """Images of the largest slice."""
        return -(-self.batch_size // self.micro_batches)

    def of_slice(self, whole: int) -> int:
        """What the largest slice has of something that the images of a batch share evenly."""
        return whole * self.slice_size // self.batch_size

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class CostModel:
    """Costs of a backbone's units, and of a method's auxiliaries at any cut.

    Args:
        backbone: A timm model, on any device (``meta`` too); left as it is.
        spec: Method and settings; its K and cuts do not count here.
        input_size: ``(channels, height, width)`` of the images.
        setting: Batch, optimizer, precision.
        criterion: Classification loss.
        progress: Called after every piece that was measured.
        clock: Times every piece as well; without it what counts is arithmetic.
    """

    def __init__(
        self,
        backbone: Any,
        spec: LocalSpec,
        input_size: tuple[int, int, int],
        setting: Setting,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        progress: Callable[[], object] = lambda: None,
        clock: "Clock | None" = None,
    ) -> None:
        self.progress, self.clock = progress, clock
        if clock is not None:
            spec.need_whole_units("calibrate")
        self.spec, self.setting, self.input_size = spec, setting, input_size
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.shapes = unit_shapes(backbone, input_size)
        self._mode = FakeTensorMode()
        self._of_units: dict[Any, Any] = {}
        self._of_auxiliaries: dict[Any, Any] = {}
        self._meta_units = list_units(without_data(backbone, "meta"))
        self.num_classes = backbone.num_classes
        with self._step():
            self._backbone = self._fake(backbone)
            self.units = list_units(self._backbone)
            images = torch.empty(setting.slice_size, *input_size)
            self._images = images.contiguous(memory_format=setting.memory_format)
            self._target = (
                torch.empty(setting.slice_size, self.num_classes)
                if setting.soft_target
                else torch.empty(setting.slice_size, dtype=torch.long)
            )
            self._features = self._run_units()
        self.out_bytes = [self._of_batch(bytes_of(h)) for h in self._features]
        self.image_bytes = self._of_batch(bytes_of(self._images))
        self.target_bytes = self._of_batch(bytes_of(self._target))

    def with_spec(self, spec: LocalSpec) -> "CostModel":
        """The same backbone for another method; what was measured of its units is shared."""
        other = copy.copy(self)
        other.spec, other._of_auxiliaries = spec, {}
        return other

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Where the step runs: on fake tensors, as on the device."""
        with self._mode, acting_as(self.setting.device):
            yield

    def _fake(self, module: Any, instead: Mapping[int, nn.Module] | None = None) -> Any:
        return without_data(module, "cpu", self.setting.memory_format, instead).train()

    def _of_batch(self, of_slice: int) -> int:
        return of_slice * self.setting.batch_size // self.setting.slice_size

    def _run_units(self) -> list[Tensor]:
        """Output of every unit, for its shape and type."""
        features, h = [], self._images
        with torch.no_grad(), self.setting.autocast():
            for unit in self.units.modules:
                h = unit(h)
                features.append(h)
        return features

    # Pieces ---------------------------------------------------------------------------------------

    def unit(self, i: int, *, first: bool, recompute: str | None) -> Piece:
        """Cost of unit ``i``.

        Args:
            i: Its index.
            first: Whether it begins a block: no gradient is asked of its input then.
            recompute: Mode in which it is recomputed in backward, if it is.
        """
        shared = first and self.shared_bytes(i) > 0
        return _remember(
            self._of_units,
            (i, first, recompute, shared),
            lambda: self._unit(i, first, recompute, shared),
        )

    def worthwhile(
        self, i: int, first: bool, modes: Sequence[str | None]
    ) -> list[tuple[str | None, Piece]]:
        """Modes of unit ``i``, with their costs, but those that save nothing over one before."""
        shared = first and self.shared_bytes(i) > 0
        return _remember(
            self._of_units, (i, first, modes, shared), lambda: self._worthwhile(i, first, modes)
        )

    def _worthwhile(
        self, i: int, first: bool, modes: Sequence[str | None]
    ) -> list[tuple[str | None, Piece]]:
        kept: list[tuple[str | None, Piece]] = []
        for mode in modes:
            piece = self.unit(i, first=first, recompute=mode)
            if not any(other.beats(piece) for _, other in kept):
                kept.append((mode, piece))
        return kept

    def _unit(self, i: int, first: bool, recompute: str | None, shared: bool) -> Piece:
        module = self.units.modules[i]
        x = self._features[i - 1] if i else self._images

        def forward(module: Any, h: Tensor, *_: Tensor) -> Tensor:
            return run(module, h, recompute=recompute)

        def real(units: Units) -> nn.Module:
            return copy.deepcopy(units.modules[i])

        alike = _remember(self._of_units, ("alike", i), lambda: _signature(module))
        key = (alike, x.shape, x.dtype, first, recompute, shared)
        return _remember(
            self._of_units,
            key,
            lambda: self._measure(key, module, real, forward, x, not first, gradients=shared),
        )

    def output(self, cut: int, place: tuple[int, int], recompute: str | None) -> Piece:
        """Cost of what ends a block after unit ``cut``: the head at the last unit, else auxiliary.

        Args:
            cut: Index of the block's last unit.
            place: Which auxiliary it is, from 0, and how many there are.
            recompute: Mode in which an auxiliary is recomputed in backward, if it is.
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

        def forward(head: Any, h: Tensor, _: Tensor, target: Tensor) -> Tensor:
            return self.criterion(head(h), target)

        def real(units: Units) -> nn.Module:
            return copy.deepcopy(units.head)

        key = (_signature(head), h.shape, h.dtype, type(self.criterion))
        return self._measure(key, head, real, forward, h)

    def _output(self, cut: int, place: tuple[int, int], recompute: str | None) -> Piece:
        h, compares = self._features[cut], self._auxiliary(cut, place).compares
        check_micro_batches(self.setting.micro_batches, compares, self.spec.method)
        shared = self.units.modules[cut + 1 : cut + 2] if self.spec.overlaps else ()

        def forward(auxiliary: Any, h: Tensor, images: Tensor, target: Tensor) -> Tensor:
            return auxiliary(h, target, images)[0]

        def real(units: Units) -> nn.Module:
            return self._build(units, cut, place, recompute)

        def measure() -> Piece:
            with torch.device("meta"):
                built = real(self._meta_units)
            own = dict(zip(map(id, self._meta_units.modules), self.units.modules, strict=True))
            with self._mode:
                auxiliary = self._fake(built, own)
            return self._measure(key, auxiliary, real, forward, h, beside=shared)

        alike = _remember(
            self._of_auxiliaries,
            ("alike", cut, place),
            lambda: (_signature(self._auxiliary(cut, place)), *map(_signature, shared)),
        )
        key = (alike, h.shape, h.dtype, recompute)
        return _remember(self._of_auxiliaries, key, measure)

    def _auxiliary(self, cut: int, place: tuple[int, int]) -> Auxiliary:
        """The auxiliary on meta tensors, to tell what it costs like."""

        def make() -> Auxiliary:
            # Not on fake tensors: they cannot be copied, and momentum units copy.
            with torch.device("meta"):
                return self._build(self._meta_units, cut, place, recompute=None)

        return _remember(self._of_auxiliaries, (cut, place), make)

    def _build(
        self, units: Units, cut: int, place: tuple[int, int], recompute: str | None
    ) -> Auxiliary:
        return build_auxiliary(
            units,
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
        key: object,
        module: nn.Module,
        real: Callable[[Units], nn.Module],
        forward: Forward,
        x: Tensor,
        differentiable: bool = True,
        gradients: bool = False,
        beside: Sequence[nn.Module] = (),
    ) -> Piece:
        """Bytes and arithmetic of a fake ``module``, seconds of the ``real`` one."""

        def fake(h: Tensor) -> Tensor:
            return forward(module, h, self._images, self._target)

        with self._step(), Arithmetic() as arithmetic:
            piece = measure_bytes(
                module,
                fake,
                x,
                kept=(self._images, self._target),
                autocast=self.setting.autocast,
                differentiable=differentiable,
                gradients=gradients
                or self.setting.keeps_gradients
                or self.setting.micro_batches > 1,
                beside=beside,
            )
        seconds = 0.0
        if self.clock is not None:
            needs = max(piece.forward_peak, piece.backward_peak)
            seconds = self.clock.seconds(key, real, forward, x, differentiable, needs)
        self.progress()
        return replace(
            piece,
            there=0 if gradients else self._there(module, *beside),
            temporaries=self._optimizer(module).temporaries,
            flops=self._of_batch(arithmetic.flops),
            seconds=seconds * self.setting.batch_size / self.setting.slice_size,
        )

    def _there(self, *modules: nn.Module) -> int:
        """Bytes of the gradients that another slice has left, but for those that live anyway."""
        if self.setting.micro_batches == 1 or self.setting.keeps_gradients:
            return 0
        learning = (p for module in modules for p in module.parameters() if p.requires_grad)
        return sum(map(bytes_of, learning))

    @property
    def divisible(self) -> bool:
        """Whether a batch in slices is the same training: its images meet nowhere."""
        auxiliaries = [] if self.spec.method == END_TO_END else [self._auxiliary(0, (0, 2))]
        return not (
            any(map(normalises_batches, (self._backbone, *auxiliaries)))
            or any(auxiliary.compares for auxiliary in auxiliaries)
        )

    # What lives through the whole step ------------------------------------------------------------

    @cached_property
    def resident(self) -> int:
        """Bytes of the backbone, its optimizers' state, its average, the images and the target."""
        unused = self._weights(self._backbone) - self._weights(self.units.head)
        unused -= sum(self._weights(unit) for unit in self.units.modules)
        used = self.head_resident + sum(self.unit_resident(i) for i in range(len(self.units)))
        return used + unused + self.image_bytes + self.target_bytes

    def unit_resident(self, i: int) -> int:
        """Bytes of unit ``i``, and of its optimizer's state."""
        return _remember(
            self._of_units,
            ("resident", i),
            lambda: self._resident(self.units.modules[i], averaged=self.setting.model_ema),
        )

    @cached_property
    def head_resident(self) -> int:
        """The same of the head."""
        return self._resident(self.units.head, averaged=self.setting.model_ema)

    def source_bytes(self, start: int) -> int:
        """Bytes of what a block before unit ``start`` copies again after every step, if it does."""
        momentum = self.spec.momentum
        if momentum is None or not momentum.ema:
            return 0
        copied = self.units.modules[start : start + momentum.momentum_units]
        return sum(bytes_of(p) for unit in copied for p in unit.parameters())

    def shared_bytes(self, start: int) -> int:
        """Bytes of the gradients that a block before unit ``start`` leaves in it, if it does.

        None where all gradients live through the step anyway.
        """
        if not (self.spec.overlaps and 0 < start < len(self.units)) or self.setting.keeps_gradients:
            return 0
        unit = self.units.modules[start]
        return sum(bytes_of(p) for p in unit.parameters() if p.requires_grad)

    def left_bytes(self, end: int) -> int:
        """The same that a block up to unit ``end`` leaves in the next; slices count them before."""
        return self.shared_bytes(end + 1) if self.setting.micro_batches == 1 else 0

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

    def _resident(self, module: nn.Module, averaged: bool = False) -> int:
        """Bytes of weights, of the optimizer's state, and of what else lives as long.

        Args:
            module: Whose weights.
            averaged: Whether an average of them is kept.
        """
        gradients = self._gradients(module) if self.setting.keeps_gradients else 0
        weights = self._weights(module)
        return weights * (1 + averaged) + self._optimizer(module).state + gradients

    def accumulated(self, block: range, end: int, place: tuple[int, int]) -> int:
        """Bytes of a block's gradients, where they live until its optimizer has stepped.

        DDP's buckets live on.
        """
        last = end == len(self.units) - 1
        ends = self.units.head if last else self._auxiliary(end, place)
        return self._accumulated(ends) + sum(map(self.unit_accumulated, block))

    def unit_accumulated(self, i: int) -> int:
        """The same of unit ``i``."""
        return _remember(
            self._of_units,
            ("accumulated", i),
            lambda: self._accumulated(self.units.modules[i]),
        )

    def _accumulated(self, module: nn.Module) -> int:
        alone = self.setting.processes == 1 and self.setting.keeps_gradients
        return self._gradients(module) if alone else 0

    @staticmethod
    def _gradients(module: nn.Module) -> int:
        return sum(bytes_of(p) for p in module.parameters() if p.requires_grad)

    @staticmethod
    def _weights(module: nn.Module) -> int:
        return sum({id(t): bytes_of(t) for t in tensors_of(module)}.values())

    # Optimizers -----------------------------------------------------------------------------------

    def _optimizer(self, module: nn.Module) -> OptimizerCost:
        """State and temporaries of a module's optimizer."""
        shapes = tuple((p.shape, p.requires_grad) for p in module.parameters())
        return _remember(
            self._of_units, ("optimizer", shapes), lambda: self._measured_optimizer(module)
        )

    def _measured_optimizer(self, module: nn.Module) -> OptimizerCost:
        setting = self.setting
        with self._mode:
            if any(p.is_meta for p in module.parameters()):
                module = self._fake(module)
            return optimizer_cost(module, setting.opt, setting.opt_kwargs, setting.device)

    @cached_property
    def _steps_at_once(self) -> bool:
        setting = self.setting
        some = nn.Linear(1, 1, device="meta")
        return steps_at_once(
            create_optimizer(some, setting.opt, setting.opt_kwargs, setting.device)
        )

    def together(self, one: int, other: int) -> int:
        """Temporaries of an optimizer that has two pieces' parameters, from those of each."""
        return one + other if self._steps_at_once else max(one, other)


def _remember(measured: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    if key not in measured:
        measured[key] = make()
    return measured[key]


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules that cost the same: their types, plain attributes and shapes.

    Of a number with a fraction (a rate, an epsilon) it counts only whether it is 0.
    """
    return tuple(
        (
            type(layer),
            repr(
                [
                    (k, bool(v) if isinstance(v, float) else v)
                    for k, v in vars(layer).items()
                    if isinstance(v, _PLAIN)
                ]
            ),
            tuple((p.shape, p.requires_grad) for p in layer.parameters(recurse=False)),
        )
        for layer in module.modules()
    )
