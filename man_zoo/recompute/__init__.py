"""Recomputation: activations forgotten after the forward pass and computed again in backward.

Within a local block every unit, and its auxiliary, is recomputed by itself, in a mode of
:mod:`man_zoo.recompute.modes`. Of an auxiliary, the branches of a momentum unit and the head are
separate stretches, so that no two of them are ever alive together. Results stay what they were,
bit for bit. In a compiled block the parts that are recomputed run uncompiled.
"""

from .modes import MODES, WHERE_NOTHING_WIDENS, WHOLE, buffers_untouched, modes_of, run
from .names import UNITS, choose_recompute, recompute_names
from .replay import widens

__all__ = [
    "MODES",
    "UNITS",
    "WHERE_NOTHING_WIDENS",
    "WHOLE",
    "buffers_untouched",
    "choose_recompute",
    "modes_of",
    "recompute_names",
    "run",
    "widens",
]
