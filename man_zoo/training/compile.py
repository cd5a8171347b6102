"""``torch.compile``, block by block."""

from collections.abc import Sequence

import torch
from torch import nn
from torch._functorch import config as functorch_config


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile every block in place; blocks of one shape share their code."""
    torch._dynamo.config.recompile_limit = max(64, 2 * len(blocks))
    # On the CPU a ReLU's mask costs far more to store and load than to compute again.
    functorch_config.aggressive_recomputation = True
    for block in blocks:
        block.compile(dynamic=False)
