"""SIGTERM stops a run: all processes after the same update, and if that never comes, soon anyway.

A batch system says so before it takes a machine away, ``torchrun`` when another process has died. A
handler alone would do for the first: it runs between two instructions of Python. But one that waits
for a dead process is in a collective, for ever perhaps, so a thread looks at the clock.
"""

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from ..console import UserError
from .ending import end
from .launcher import end_if_of_lost_peer

T = TypeVar("T")

STATUS = 128 + signal.SIGTERM  # what a shell makes of SIGTERM
# A batch system signals a launcher and its processes alike, and the launcher passes its own on.
_ONE_SIGNAL = 3.0  # seconds in which two count as one
_END = b"\0"  # no signal's number
# torchrun's own variable: seconds from its SIGTERM to its SIGKILL.
_TO_SIGKILL = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


class Stopped(UserError):
    """The run has stopped where it is, as it was asked to."""

    status = STATUS


class Termination:
    """Within ``with``, SIGTERM is a wish that training looks at.

    Before training begins it ends the process at once. So does a second one, some seconds after the
    first; and in a run of several processes, of which one may be dead, the first, unless the run
    has ended by itself 0.8 x ``TORCH_ELASTIC_SHUTDOWN_TIMEOUT`` seconds later (that is 30 by
    default, after which ``torchrun`` and SLURM kill).

    Args:
        go_on: What to do then, e.g. ``go on with --resume runs/first``; ends the sentence.
    """

    def __init__(self, go_on: str) -> None:
        self.go_on = go_on
        self.asked = False  # of this process
        self._begun = False
        self._votes: deque[tuple[distributed.Work, torch.Tensor]] = deque()

    def __enter__(self) -> "Termination":
        self._group: distributed.ProcessGroup | None = None
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            # Of its own, so that no other collective waits for it; this process is a member.
            self._group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo"))
        self._told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._before = (
            signal.signal(signal.SIGTERM, self._ask),
            signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False),
        )
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._group is not None and error is not None:
            # At once: torchrun's SIGTERM would come before the error has found its way out.
            end_if_of_lost_peer(error, self.go_on)
        handler, descriptor = self._before
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        os.write(self._tell, _END)  # children that live on have the pipe open too
        self._thread.join()
        os.close(self._tell)
        os.close(self._told)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def begin(self) -> None:
        """From here on there is something to save, and a look soon."""
        self._begun = True

    def look(self, *, lag: int = 0) -> None:
        """Stop, if any process has been asked to: at this look or, with ``lag``, so many before.

        Every process comes here at the same points of its run, and all raise at the same one.

        Args:
            lag: Looks between a vote and its count. No process waits for others that are no more
                than so many behind.

        Raises:
            Stopped: Then.
        """
        if self._group is None:
            stops = self.asked
        else:
            vote = torch.tensor([int(self.asked)], dtype=torch.int32)
            maximum = distributed.ReduceOp.MAX
            work = distributed.all_reduce(vote, maximum, group=self._group, async_op=True)
            assert work is not None  # it is for those that are no members
            self._votes.append((work, vote))
            stops = self._count(lag)
        if stops:
            self._count(0)
            raise Stopped(f"stopped by SIGTERM, the checkpoint is written; {self.go_on}.")

    def _count(self, lag: int) -> bool:
        stops = False
        while len(self._votes) > lag:
            work, vote = self._votes.popleft()
            work.wait()
            stops |= bool(vote)
        return stops

    def until_asked(self, items: Iterable[T]) -> Iterator[T]:
        """The items, of which one at least, as long as this process is not asked to stop."""
        for item in items:
            yield item
            if self.asked:
                return

    def _watch(self) -> None:
        first, limit = None, 0.8 * float(os.environ.get(_TO_SIGKILL, 30))
        while True:
            left = None
            if first is not None and self._group is not None:
                left = first + limit - time.monotonic()
                if left <= 0:
                    why = "ended by SIGTERM, which a launcher also sends when another process has "
                    end(f"{why}died, and the run did not stop by itself; {self.go_on}", STATUS)
            ready, _, _ = select.select([self._told], [], [], left)
            if not ready:
                continue
            signals = os.read(self._told, 1024)
            if _END in signals:
                return
            if signal.SIGTERM not in signals:
                continue
            if not self._begun:
                end(f"ended by SIGTERM before the training began; {self.go_on}", STATUS)
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > _ONE_SIGNAL:
                end(f"ended by a second SIGTERM; {self.go_on}", STATUS)


def _forget() -> None:
    """A process that is forked from one that heeds SIGTERM takes its own, and tells nobody."""
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Termination):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
