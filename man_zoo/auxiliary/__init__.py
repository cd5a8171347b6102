"""Auxiliaries: what turns a block's output into a local loss. One file a base method.

A base method is a head class: ``Head(site, **settings)`` with
``forward(features, target, image) -> (loss, logits or None)`` and ``classify(features)``. To add
one, write its file and register it here (or call :func:`man_zoo.register_method`).
"""

from .auglocal import AugLocalHead
from .auxiliary import Auxiliary
from .dgl import DGLHead
from .infopro import InfoProHead
from .momentum import MomentumLink, MomentumSettings, MomentumUnit
from .predsim import PredSimHead
from .site import Site

METHODS: dict[str, type] = {
    "dgl": DGLHead,
    "infopro": InfoProHead,
    "predsim": PredSimHead,
    "auglocal": AugLocalHead,
}

__all__ = ["METHODS", "Auxiliary", "MomentumLink", "MomentumSettings", "MomentumUnit", "Site"]
