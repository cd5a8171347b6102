"""All that is to be known of one run of a piece, from one mode: each costs as much again.

``FlopCounterMode`` also follows which module runs, and so keeps recomputed activations alive: a
piece would have to run twice, and slower. The formulas of operators are all that is needed here.
"""

from typing import Any

import torch
from torch import Tensor

from ..arithmetic import formula
from ..meter import LiveBytes
from ..recompute import widens


class PieceMeter(LiveBytes):
    """Live bytes, the same as if somebody kept input and output, and arithmetic.

    ``peak`` counts the input to the end, ``held_peak`` the output as well; ``current`` neither.
    ``flops`` are those of :mod:`man_zoo.arithmetic`; ``widens`` is whether a product was larger
    than all that it was made of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.held_peak = 0
        self.widens = False
        self._input = self._output = 0  # ids of their storages
        self._gone_input = self._gone_output = 0  # their bytes, once they are freed

    @property
    def with_input(self) -> int:
        """Live bytes, the input among them even if it is gone."""
        return self.current + self._gone_input

    def keep_input(self, x: Tensor) -> None:
        """Count this storage to the end."""
        self._see(x)
        self._input = id(x.untyped_storage())

    def keep_output(self, y: Tensor) -> None:
        """Count this storage to the end in ``held_peak``."""
        self._see(y)
        self._output = id(y.untyped_storage())

    def reset_peak(self) -> None:
        """Let both peaks start again from what is alive now."""
        self.peak = self.with_input
        self.held_peak = self.peak + self._gone_output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # autograd asks for every gradient's
            return args[0].device
        out = super().__torch_dispatch__(func, types, args, kwargs)
        count = formula(func)
        if count is not None:
            self.flops += count(*args, **kwargs or {}, out_val=out)
        if isinstance(out, Tensor) and widens(func, args, out):
            self.widens = True
        return out

    def _add(self, size: int) -> None:
        self.current += size
        self.peak = max(self.peak, self.with_input)
        self.held_peak = max(self.held_peak, self.with_input + self._gone_output)

    def _forget(self, key: int) -> None:
        size = self._seen[key][1]
        if key == self._input:
            self._gone_input, self._input = size, 0  # the id may be given to another storage now
        elif key == self._output:
            self._gone_output, self._output = size, 0
        super()._forget(key)
