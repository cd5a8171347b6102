"""Tensors from a process to the one beside it: in order, none lost, a bounded number on the way.

Every direction between two processes has a communicator of its own, so that no message waits behind
one that goes the other way.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor

# What a header can name: the position is the code, so new ones go at the end.
_DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)
_DIMENSIONS = 6
_MOST = 4  # tensors in a message


class Outbox:
    """Sends tensors to one process.

    Args:
        peer: Its global rank.
        group: The communicator of this direction.
    """

    def __init__(self, peer: int, group: dist.ProcessGroup) -> None:
        self.peer, self.group = peer, group
        self._sent: deque[tuple[list[dist.Work], list[Tensor]]] = deque()

    def put(self, tensors: Sequence[Tensor], *, headers: bool = True) -> None:
        """Start to send tensors, which must not change until they have arrived.

        Args:
            tensors: On the communicator's device.
            headers: Whether the receiver has to be told their shapes.
        """
        whole = [_rows(tensor.detach()) for tensor in tensors]
        if headers:
            whole = [_headers(tensors), *whole]
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, tensor, self.peer, self.group) for tensor in whole]
        )
        self._sent.append((works, whole))  # alive until they have arrived

    def wait(self, keep: int = 0) -> None:
        """Wait until no more than ``keep`` of the messages have yet to arrive."""
        while len(self._sent) > keep:
            works, _ = self._sent.popleft()
            for work in works:
                work.wait()


class Inbox:
    """Takes tensors from one process, in the order in which it sent them.

    Args:
        peer: Its global rank.
        group: The communicator of this direction.
        device: Where tensors arrive.
    """

    def __init__(self, peer: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self.peer, self.group, self.device = peer, group, device

        self._ahead: Future[list[Tensor]] | None = None

    def expect(self) -> None:
        """Receive the next message from now on, so that :meth:`take` finds it there.

        On the CPU a message takes long beside computation, because what moves it must find a core
        again for every piece. A GPU's copies run beside its kernels, and are left to its streams.
        """
        if self.device.type != "cpu":
            return
        ahead: Future[list[Tensor]] = Future()

        def receive() -> None:
            try:
                ahead.set_result(self._receive())
            except BaseException as error:
                ahead.set_exception(error)

        self._ahead = ahead
        Thread(target=receive, daemon=True).start()  # no process lives on for it

    def take(self) -> list[Tensor]:
        """The next message; waits for it."""
        if self._ahead is None:
            return self._receive()
        ahead, self._ahead = self._ahead, None
        return ahead.result()

    def _receive(self) -> list[Tensor]:
        headers = torch.empty(_MOST, 3 + _DIMENSIONS, dtype=torch.int64, device=self.device)
        self.fill([headers])
        tensors = [_empty(header, self.device) for header in headers.tolist() if header[0] >= 0]
        self.fill(tensors)
        return tensors

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Receive a message without headers into tensors of its shapes; waits for it."""
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.irecv, _rows(tensor), self.peer, self.group) for tensor in tensors]
        )
        for work in works:
            work.wait()


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as communicators take it, contiguous; channels-last ones are, seen as NHWC."""
    return tensor.permute(0, 2, 3, 1) if _channels_last(tensor) else tensor.contiguous()


def _headers(tensors: Sequence[Tensor]) -> Tensor:
    """A row a tensor, and rows of -1 for those that there are not."""
    headers = torch.full((_MOST, 3 + _DIMENSIONS), -1, dtype=torch.int64)
    for row, tensor in zip(headers, tensors, strict=False):
        numbers = [_DTYPES.index(tensor.dtype), _channels_last(tensor), tensor.dim(), *tensor.shape]
        row[: len(numbers)] = torch.tensor(numbers)
    return headers.to(tensors[0].device)


def _empty(header: Sequence[int], device: torch.device) -> Tensor:
    dtype, channels_last, dimensions, *shape = header
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        shape[:dimensions], dtype=_DTYPES[dtype], device=device, memory_format=layout
    )
