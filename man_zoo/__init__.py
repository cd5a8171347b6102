"""man_zoo: supervised local learning with momentum auxiliary networks, as timm models.

Importing it registers the zoo with timm.
"""

from . import ancestors as ancestors  # looks, before torch loads
from . import backbones as backbones  # registers the CIFAR ResNets
from .local_block import LocalBlock
from .local_model import LocalModel
from .localize import localize
from .parallel.block_parallel import BlockParallel
from .registry import register
from .spec import LocalSpec, list_methods
from .step import LocalOutput, local_step

__version__ = "0.1.0"
__all__ = [
    "BlockParallel",
    "LocalBlock",
    "LocalModel",
    "LocalOutput",
    "LocalSpec",
    "list_methods",
    "local_step",
    "localize",
    "register",
]
