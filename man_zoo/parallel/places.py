"""Where a process stands among the others: which blocks it trains, on which share of the data.

P processes train the blocks of one batch (:mod:`~man_zoo.parallel.block_parallel`), and D such
groups share the data, on a mesh of P x D. Processes that average gradients are neighbours in rank,
so those of one machine do.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

T = TypeVar("T")


@dataclass(frozen=True)
class Places:
    """This process's place in a mesh of P x D.

    Args:
        blocks: The P processes that train other blocks of the same batches; ``None`` where P = 1.
        data: The D processes that train the same blocks on other batches; ``None`` where D = 1.
    """

    blocks: dist.ProcessGroup | None = None
    data: dist.ProcessGroup | None = None

    @property
    def block_index(self) -> int:
        """This process among those of other blocks."""
        return dist.get_rank(self.blocks) if self.blocks else 0

    @property
    def block_count(self) -> int:
        """P."""
        return self.blocks.size() if self.blocks else 1

    @property
    def data_index(self) -> int:
        """This process among those of other batches."""
        return dist.get_rank(self.data) if self.data else 0

    @property
    def data_count(self) -> int:
        """D."""
        return self.data.size() if self.data else 1

    @property
    def is_first(self) -> bool:
        """Whether this process reads images."""
        return self.block_index == 0

    @property
    def is_last(self) -> bool:
        """Whether this process has the network's head, and comes to know all losses."""
        return self.block_index == self.block_count - 1

    @property
    def shard(self) -> tuple[int, int]:
        """Which share of the data this process trains on, and of how many."""
        return self.data_index, self.data_count

    @property
    def tells(self) -> bool:
        """Whether this process, of those that know all losses, shows them."""
        return self.is_last and self.data_index == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """Its mean over the data's shares."""
        if self.data is None:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.data)
        return total / self.data_count

    def from_first(self, value: T) -> T:
        """What the first of the processes of this batch has, in all of them."""
        return self._from(0, value)

    def from_last(self, value: T) -> T:
        """What the last of the processes of this batch has, in all of them."""
        return self._from(self.block_count - 1, value)

    def _from(self, index: int, value: T) -> T:
        if self.blocks is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.blocks, group_src=index)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """What each of the processes of this batch has, in order, in all of them.

        Where there are several, tensors come to the CPU.
        """
        if self.blocks is None:
            return [value]
        values: list = [None] * self.block_count
        # What is pickled on one GPU would be made on that GPU in every process.
        dist.all_gather_object(values, send_to_device(value, "cpu"), group=self.blocks)
        return values


def create_places(block_processes: int, device: torch.device) -> Places:
    """The places of all processes there are.

    Args:
        block_processes: P; as many processes as share the data follow from it.
        device: Where this process trains.

    Raises:
        ValueError: If the processes cannot be divided so.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world % block_processes:
        raise ValueError(
            f"--block-parallel {block_processes} needs {block_processes} processes or a multiple "
            f"of that, and {world} were launched; launch them with torchrun --nproc_per_node."
        )
    if world == 1:
        return Places()
    shape, names = (block_processes, world // block_processes), ("blocks", "data")
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    groups = [mesh.get_group(name) if mesh[name].size() > 1 else None for name in names]
    return Places(*groups)
