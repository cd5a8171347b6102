"""Training steps side by side: time, memory and arithmetic of several models in one run.

Every model stands beside its own backbone trained end to end, by the same code path, and beside
end to end with timm's activation checkpointing, which a practitioner would use instead.

**Time.** All models are in memory at once and take turns, one step each a round, so that whatever
else the machine does hits all alike. A ratio is the median of the ratios within each round; a
compiled model is divided by compiled end to end, an eager one by eager. The step is the training
recipe's: an SGD a block that steps right after the block's backward.

**Memory and arithmetic** come from :mod:`man_zoo.meter`, so they need neither the memory nor the
time of a step, and say nothing of compiled code. On a CUDA device the allocator's own peak, of each
model alone on the device, stands beside them.
"""

from .report import benchmark, render
from .step import live_cost

__all__ = ["benchmark", "live_cost", "render"]
