"""A backbone with a decoder on it: what is trained, used and exported for a dense task."""

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..families import Units, list_units, map_shapes
from ..recompute import WHOLE, run
from .decoder import Decoder
from .task import Task

Features = Tensor | tuple[Tensor, ...]
"""What passes from unit to unit, in the backbone's layout, followed by what a decoder taps."""


class DenseHead(nn.Module):
    """What follows the last unit: the end of ``forward_features``, then the decoder.

    Args:
        units: The backbone's.
        decoder: Of the task.
    """

    def __init__(self, units: Units, decoder: Decoder) -> None:
        super().__init__()
        self.tail = units.tail
        self.decoder = decoder
        self.layout = units.layout

    def forward(self, features: Features) -> Tensor:
        """The prediction, from the last unit's output and the tapped ones."""
        stream, *taps = as_list(features)
        return self.decoder([self.layout.to_map(h) for h in (*taps, self.tail(stream))])


def head_on(units: Units, decoder: Decoder | None) -> nn.Module:
    """What follows the units: the backbone's head, or a decoder."""
    return units.head if decoder is None else DenseHead(units, decoder)


def new_decoder(
    task: Task, backbone: nn.Module, input_size: tuple[int, int, int]
) -> Decoder | None:
    """The task's decoder for a backbone and images ``(channels, height, width)``, if it has one.

    Raises:
        ValueError: For a backbone whose maps it cannot stand on.
    """
    maps = map_shapes(backbone, input_size) if task.dense else ()
    return task.decoder(maps, input_size)


class DenseNetwork(nn.Module):
    """Images to a prediction; end to end this is trained as it is.

    Args:
        backbone: A timm model.
        decoder: On its maps.
        task: Which both are for.
        checkpointing: Whether every unit but the stem is recomputed in backward, as timm does it.
    """

    units: Units
    head: DenseHead

    def __init__(
        self, backbone: Any, decoder: Decoder, task: Task, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.task, self.checkpointing = task, checkpointing
        # Hidden from nn.Module: views on the two above, whose weights are there once.
        units = list_units(backbone)
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "head", DenseHead(units, decoder))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether units are recomputed in backward."""
        self.checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        """The prediction of images ``(B, C, H, W)``, as :meth:`Task.to_image` gives it."""
        modes = {i: WHOLE for i in range(1, len(self.units)) if self.checkpointing}
        prediction = self.head(run_units(self.units.modules, images, self.decoder.taps, modes))
        return self.task.to_image(prediction, (images.shape[2], images.shape[3]))


def need_no_taps(task: Task, taps: Sequence[int]) -> None:
    """Raises ``ValueError`` for a decoder on several maps, where blocks pass one on."""
    if taps:
        raise ValueError(
            f"This decoder for {task.name} takes maps of several blocks, and block parallelism "
            "passes one on; use one process, data parallelism, or another decoder."
        )


def units_and_head(network: nn.Module) -> tuple[Units, nn.Module]:
    """Of a backbone, or of a dense network."""
    if isinstance(network, DenseNetwork):
        return network.units, network.head
    units = list_units(network)
    return units, units.head


def run_units(
    units: Iterable[nn.Module],
    features: Features,
    taps: Container[int] = (),
    recompute: Mapping[int, str] = MappingProxyType({}),
) -> Features:
    """Run units one after the other, and keep what a decoder taps.

    Args:
        units: In order.
        features: The input of the first; what was tapped before them comes along.
        taps: Indices of the units whose output is tapped.
        recompute: Modes of the units that are recomputed in backward, by index.
    """
    stream, *tapped = as_list(features)
    for i, unit in enumerate(units):
        stream = run(unit, stream, recompute=recompute.get(i))
        if i in taps:
            tapped.append(stream)
    return (stream, *tapped) if tapped else stream


def as_list(features: Features) -> list[Tensor]:
    """The stream, and what is tapped."""
    return [features] if isinstance(features, Tensor) else list(features)
