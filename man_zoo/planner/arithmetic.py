"""Arithmetic, counted beside live bytes in one run of a piece.

``FlopCounterMode`` also follows which module runs, and so keeps recomputed activations alive: a
piece would have to run twice, and slower. Its table of operators is all that is needed here.
"""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Arithmetic(TorchDispatchMode):
    """Add up ``flops``, two per multiply-add, as :class:`torch.utils.flop_counter` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out
