"""Auxiliaries: what turns a block's output into a local loss. One file a base method.

A base method is a :class:`Head`. To add one, write its file and add its line to ``METHODS``.
"""

from .auglocal import AugLocalHead
from .auxiliary import Auxiliary
from .dgl import DGLHead
from .head import Head
from .infopro import InfoProHead
from .momentum import MomentumLink, MomentumSettings, MomentumUnit
from .overlap import SharedUnit
from .predsim import PredSimHead
from .site import Site

METHODS: dict[str, type[Head]] = {
    "dgl": DGLHead,
    "infopro": InfoProHead,
    "predsim": PredSimHead,
    "auglocal": AugLocalHead,
}

__all__ = [
    "METHODS",
    "Auxiliary",
    "Head",
    "MomentumLink",
    "MomentumSettings",
    "MomentumUnit",
    "SharedUnit",
    "Site",
]
