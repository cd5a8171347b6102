"""What each piece of a split network costs, measured alone on fake tensors and then added up.

A piece is a unit, or what ends a block: an auxiliary or the head. It is run forward and backward
once, under the rules of :mod:`man_zoo.meter`, and any block is a sum of pieces: that is why every
cut of a ResNet-152 can be looked at in seconds, on a machine that could not hold one of its steps.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..auxiliary import Auxiliary
from ..auxiliary.build import build_auxiliary
from ..families import Units, list_units, map_shapes, unit_shapes
from ..micro_batches import check_micro_batches, need_images
from ..recompute import run
from ..spec import LocalSpec
from ..target import acting_as
from ..tasks import Classification, Task, head_on
from .dense import held, measure_head
from .fake_mode import QuickFakeMode
from .optimizer import OptimizerCost, create_optimizer, optimizer_cost, steps_at_once
from .piece import Forward, Piece, bytes_of, measure_piece, same_mode, without_data
from .setting import Setting
from .signature import signature

if TYPE_CHECKING:
    from .seconds import Clock


class CostModel:
    """Costs of a backbone's units, and of a method's auxiliaries at any cut.

    Args:
        backbone: A timm model, on any device (``meta`` too); left as it is.
        spec: Method and settings; its K and cuts do not count here.
        input_size: ``(channels, height, width)`` of the images.
        setting: Batch, optimizer, precision.
        criterion: The task's loss by default.
        progress: Called after every piece that was measured.
        clock: Times every piece as well; without it what counts is arithmetic.
        task: What is learnt; classification into the backbone's classes by default.
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
        task: Task | None = None,
    ) -> None:
        self.progress, self.clock = progress, clock
        if clock is not None:
            spec.need_whole_units("calibrate")
        self.spec, self.setting, self.input_size = spec, setting, input_size
        self.task = task or Classification(backbone.num_classes)
        need_images(self.task.least_images, setting.batch_size, setting.micro_batches)
        self.criterion = criterion or self.task.criterion()
        self.shapes = unit_shapes(backbone, input_size)
        self._mode = QuickFakeMode()
        self.of_units: dict[Any, Any] = {}
        self.of_auxiliaries: dict[Any, Any] = {}
        self._meta_units = list_units(without_data(backbone, "meta"))
        self.maps = map_shapes(backbone, input_size) if self.task.dense else ()
        with torch.device("meta"):
            decoder = self.task.decoder(self.maps, input_size)
        self.taps = decoder.taps if decoder else ()
        with self._step():
            self.backbone = self._fake(backbone)
            self.units = list_units(self.backbone)
            self.head = head_on(self.units, decoder and self._fake(decoder))
            self._images, self._target = setting.some_batch(
                setting.slice_size, input_size, self.task
            )
            self.features = self._run_units()
        self.out_bytes = [self._of_batch(bytes_of(h)) for h in self.features]
        self.image_bytes = self._of_batch(bytes_of(self._images))
        self.target_bytes = self._of_batch(bytes_of(self._target))

    def with_spec(self, spec: LocalSpec) -> "CostModel":
        """The same backbone for another method; what was measured of its units is shared."""
        other = copy.copy(self)
        other.spec, other.of_auxiliaries = spec, {}
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
        recompute = same_mode(recompute, lambda: self.unit(i, first=first, recompute=None))

        def measure() -> Piece:
            piece = self._unit(i, first, recompute, shared)
            return held(piece) if i in self.taps else piece

        return remember(self.of_units, (i, first, recompute, shared), measure)

    def worthwhile(
        self, i: int, first: bool, modes: Sequence[str | None]
    ) -> list[tuple[str | None, Piece]]:
        """Modes of unit ``i``, with their costs, but those that save nothing over one before."""
        shared = first and self.shared_bytes(i) > 0
        return remember(
            self.of_units, (i, first, modes, shared), lambda: self._worthwhile(i, first, modes)
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
        x = self.features[i - 1] if i else self._images

        def forward(module: Any, h: Tensor, *_: Tensor) -> Tensor:
            return run(module, h, recompute=recompute)

        def real(units: Units) -> nn.Module:
            return copy.deepcopy(units.modules[i])

        alike = remember(self.of_units, ("alike", i), lambda: signature(module))
        key = (alike, x.shape, x.dtype, first, recompute, shared)
        return remember(
            self.of_units,
            key,
            lambda: self.measure(key, module, real, forward, x, not first, gradients=shared),
        )

    def output(
        self, cut: int, place: tuple[int, int], recompute: str | None, start: int = 0
    ) -> Piece:
        """Cost of what ends a block after unit ``cut``: the head at the last unit, else auxiliary.

        Args:
            cut: Index of the block's last unit.
            place: Which auxiliary it is, from 0, and how many there are.
            recompute: Mode in which an auxiliary is recomputed in backward, if it is.
            start: Index of the block's first unit: a head gives gradients to maps of its own block.
        """
        if cut == len(self.units) - 1:
            own = sum(tap >= start for tap in self.taps)
            return remember(self.of_units, ("head", own), lambda: measure_head(self, own))
        recompute = same_mode(recompute, lambda: self.output(cut, place, None))
        return remember(
            self.of_auxiliaries,
            ("output", cut, place, recompute),
            lambda: self._output(cut, place, recompute),
        )

    def _output(self, cut: int, place: tuple[int, int], recompute: str | None) -> Piece:
        h, compares = self.features[cut], self.auxiliary(cut, place).compares
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
            return self.measure(key, auxiliary, real, forward, h, beside=shared)

        alike = remember(
            self.of_auxiliaries,
            ("alike", cut, place),
            lambda: (signature(self.auxiliary(cut, place)), *map(signature, shared)),
        )
        key = (alike, h.shape, h.dtype, recompute)
        return remember(self.of_auxiliaries, key, measure)

    def auxiliary(self, cut: int, place: tuple[int, int]) -> Auxiliary:
        """The auxiliary on meta tensors, to tell what it costs like."""

        def make() -> Auxiliary:
            # Not on fake tensors: they cannot be copied, and momentum units copy.
            with torch.device("meta"):
                return self._build(self._meta_units, cut, place, recompute=None)

        return remember(self.of_auxiliaries, (cut, place), make)

    def _build(
        self, units: Units, cut: int, place: tuple[int, int], recompute: str | None
    ) -> Auxiliary:
        return build_auxiliary(
            units,
            self.shapes,
            cut,
            self.spec,
            self.input_size,
            self.task,
            self.criterion,
            place=place,
            recompute=recompute,
        )

    def measure(
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

        with self._step():
            piece = measure_piece(
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
            temporaries=self.optimizer(module).temporaries,
            flops=self._of_batch(piece.flops),
            seconds=seconds * self.setting.batch_size / self.setting.slice_size,
        )

    def _there(self, *modules: nn.Module) -> int:
        """Bytes of the gradients that another slice has left, but for those that live anyway."""
        if self.setting.micro_batches == 1 or self.setting.keeps_gradients:
            return 0
        return sum(map(gradient_bytes, modules))

    # Gradients that others leave ------------------------------------------------------------------

    def shared_bytes(self, start: int) -> int:
        """Bytes of the gradients that a block before unit ``start`` leaves in it, if it does.

        None where all gradients live through the step anyway.
        """
        if not (self.spec.overlaps and 0 < start < len(self.units)) or self.setting.keeps_gradients:
            return 0
        return gradient_bytes(self.units.modules[start])

    def left_bytes(self, end: int) -> int:
        """The same that a block up to unit ``end`` leaves in the next; slices count them before."""
        return self.shared_bytes(end + 1) if self.setting.micro_batches == 1 else 0

    # Optimizers -----------------------------------------------------------------------------------

    def optimizer(self, module: nn.Module) -> OptimizerCost:
        """State and temporaries of a module's optimizer."""
        shapes = tuple((p.shape, p.requires_grad) for p in module.parameters())
        return remember(
            self.of_units, ("optimizer", shapes), lambda: self._measured_optimizer(module)
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


def remember(measured: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    if key not in measured:
        measured[key] = make()
    return measured[key]


def gradient_bytes(module: nn.Module) -> int:
    """Bytes of a module's gradients, once they are there."""
    return sum(bytes_of(p) for p in module.parameters() if p.requires_grad)
