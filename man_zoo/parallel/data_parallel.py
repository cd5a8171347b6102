"""Data parallelism: every block is a DDP module of its own, wrapped by Accelerate."""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, get_mixed_precision_context_manager
from timm.utils import distribute_bn
from torch import nn

# BatchNorm's statistics are averaged once an epoch, not broadcast at every step.
DDP_KEYWORDS = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)


def prepare_blocks(accelerator: Accelerator, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Blocks as Accelerate wraps them, for processes and for precision."""
    wrapped = [accelerator.prepare(block) for block in blocks]
    if accelerator.native_amp:
        for block in wrapped:
            _keep_low_precision(accelerator, block)
    return wrapped


def _keep_low_precision(accelerator: Accelerator, block: nn.Module) -> None:
    """Let a prepared block pass its features on as autocast made them.

    Accelerate turns outputs into float32. The next block would round them straight back, and the
    features between two blocks would take twice the memory.
    """
    plain = accelerator.unwrap_model(block, keep_fp32_wrapper=False)
    autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
    plain.forward = autocast(plain.forward)


def average_statistics(accelerator: Accelerator, *modules: nn.Module) -> None:
    """Make the processes' modules one: BatchNorm's running statistics are averaged."""
    if accelerator.num_processes > 1:
        for module in modules:
            distribute_bn(module, accelerator.num_processes, reduce=True)
