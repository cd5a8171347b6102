"""Data parallelism: every block is a DDP module of its own, and averages while others run."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import get_mixed_precision_context_manager
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Averages:
    """A block's gradients on their way to being the averages over the processes.

    DDP itself waits at the end of the block's backward. Told by :meth:`start` that all is done, it
    does not, and whoever needs the gradients waits: the next block can run meanwhile.

    Args:
        group: The processes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.under_way: list[dist.Work] = []

    def start(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DDP's communication hook."""
        gradients = bucket.buffer().mul_(1 / self.group.size())
        work = dist.all_reduce(gradients, group=self.group, async_op=True)
        self.under_way.append(work)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done

    def wait(self) -> None:
        """Return when the gradients are the averages, on the device if not on the host."""
        for work in self.under_way:
            work.wait()
        self.under_way.clear()


class PlainReplica(DistributedDataParallel):
    """A block that every process of a group has, in DDP as it is: its backward waits for all.

    Args:
        block: The block; the group's first process's parameters become everyone's.
        group: The processes; all of them by default.
    """

    def __init__(self, block: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        # The gradients are the very buckets that are summed in place. BatchNorm's statistics are
        # averaged once an epoch, not broadcast at every step.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.14's name is not in 2.11
            super().__init__(
                block, process_group=group, gradient_as_bucket_view=True, broadcast_buffers=False
            )


class Replica(PlainReplica):
    """A block whose backward does not wait; ``averages`` says when its gradients are final.

    Args:
        block: As there.
        group: As there.
    """

    def __init__(self, block: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(block, group)
        self.averages = Averages(self.process_group)
        self.register_comm_hook(self.averages, Averages.start)


def prepare_blocks(
    accelerator: Accelerator, blocks: Sequence[nn.Module], group: dist.ProcessGroup | None = None
) -> list[nn.Module]:
    """Blocks for precision, as Accelerate wraps them, and for processes.

    Args:
        accelerator: For device and precision.
        blocks: All of a model's blocks, or some.
        group: The processes that have these blocks; ``None`` for this one alone.
    """
    prepared = [prepare_precision(accelerator, block) for block in blocks]
    return [Replica(block, group) for block in prepared] if group is not None else prepared


def prepare_precision(accelerator: Accelerator, block: nn.Module) -> nn.Module:
    """A block for device and precision, that passes its features on as autocast made them.

    Accelerate turns outputs into float32. The next block would round them straight back, and the
    features between two blocks would take twice the memory.
    """
    block = accelerator.prepare_model(block, evaluation_mode=True)
    if accelerator.native_amp:
        plain = accelerator.unwrap_model(block, keep_fp32_wrapper=False)
        autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
        plain.forward = autocast(plain.forward)
    return block


def kept_here(block: nn.Module) -> AbstractContextManager[None]:
    """Within, a block's gradients add up in this process and are not averaged."""
    return block.no_sync() if isinstance(block, Replica) else nullcontext()


def average_gradients(block: nn.Module) -> None:
    """Wait until a block's gradients are the averages over the processes that have it."""
    if isinstance(block, Replica):
        block.averages.wait()


def average_statistics(group: dist.ProcessGroup, *modules: nn.Module) -> None:
    """Make the group's modules one: BatchNorm's running statistics are averaged."""
    for module in modules:
        for name, buffer in module.named_buffers():
            # As timm's distribute_bn, which has no groups.
            if name.endswith(("running_mean", "running_var")) and not buffer.is_meta:
                dist.all_reduce(buffer, group=group)
                buffer /= group.size()
