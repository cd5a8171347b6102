"""The network's head as a piece, and the maps that a dense task's decoder taps.

A map that is tapped is held from the unit that makes it to the decoder. In the last block its
gradient waits from the decoder's backward pass to that unit's; from an earlier block it is detached
and goes along with the features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..families import Units
from ..tasks import DenseNetwork, Task, head_on, new_decoder
from .piece import Piece
from .signature import signature

if TYPE_CHECKING:
    from .cost import CostModel


def network_of(backbone: Any, task: Task, input_size: tuple[int, int, int]) -> nn.Module:
    """What is trained end to end: the backbone, for a dense task with a decoder on ``meta``."""
    with torch.device("meta"):
        decoder = new_decoder(task, backbone, input_size)
    return backbone if decoder is None else DenseNetwork(backbone, decoder, task)


def measure_head(model: CostModel, own: int) -> Piece:
    """What the head costs, with the loss.

    Args:
        model: Of the pieces.
        own: How many of the maps that it taps are of its own block, and get gradients.
    """
    h, taps = model.features[-1], [model.features[i] for i in model.taps]

    def forward(head: Any, h: Tensor, _: Tensor, target: Tensor) -> Tensor:
        return model.criterion(head(h), target)

    def tapped(head: nn.Module, maps: Sequence[Tensor]) -> nn.Module:
        return Tapped(head, maps, own) if maps else head

    def real(units: Units) -> nn.Module:
        head = head_on(units, model.task.decoder(model.maps, model.input_size))
        return tapped(copy.deepcopy(head), [torch.zeros(x.shape, dtype=x.dtype) for x in taps])

    head = tapped(model.head, taps)
    key = (signature(head), h.shape, h.dtype, type(model.criterion))
    return model.measure(key, head, real, forward, h)


class Tapped(nn.Module):
    """A head with the maps that it taps at hand, so that it runs on its input alone.

    Args:
        head: Takes features, the tapped maps behind the stream.
        maps: Those, of any values.
        own: How many of the last of them are its own block's, and get gradients.
    """

    def __init__(self, head: nn.Module, maps: Sequence[Tensor], own: int) -> None:
        super().__init__()
        self.head, self.own = head, own
        for i, x in enumerate(maps):
            self.register_buffer(str(i), x)

    def forward(self, stream: Tensor) -> Tensor:
        taps = [self.get_buffer(str(i)).detach() for i in range(len(self._buffers))]
        for x in taps[len(taps) - self.own :]:
            x.requires_grad_()
        return self.head((stream, *taps))


def held(piece: Piece) -> Piece:
    """A unit whose output outlives its own backward pass."""
    return replace(piece, saved=piece.saved + piece.output, output=0, backward_peak=piece.held_peak)


def carried(model: CostModel, end: int) -> int:
    """Bytes of the maps that go along with the output of unit ``end``, itself left out."""
    return sum(model.out_bytes[i] for i in model.taps if i < end)


def of_later_blocks(model: CostModel, i: int, end: int) -> int:
    """Of a slice, maps of the units between ``i`` and ``end`` that later blocks wait for."""
    if end == len(model.units) - 1:
        return 0
    return sum(model.setting.of_slice(model.out_bytes[t]) for t in model.taps if i < t < end)


def waiting_gradients(model: CostModel, start: int, i: int, end: int) -> int:
    """Of a slice, gradients of maps of units ``start`` to ``i - 1``, if the decoder gave them."""
    if end < len(model.units) - 1:
        return 0
    return sum(model.setting.of_slice(model.out_bytes[t]) for t in model.taps if start <= t < i)
