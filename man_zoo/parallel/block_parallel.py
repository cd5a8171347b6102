"""Block parallelism: a process for each run of consecutive blocks, and no bubble in a step.

No gradient crosses a cut, so while a process trains its blocks on one batch, the one before it is
at the next batch already. Features, targets and, where an auxiliary looks at them, images go
forward. Nothing comes back but the parameters that MAN's copy follows: block j's copy follows the
first unit of block j + 1 as it was *before* that block's update of the same batch, and that is what
the next process has when it has finished the batch before. So block-parallel training does what
:func:`man_zoo.local_step` does in one process, bit for bit.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..auxiliary import MomentumLink
from ..local_model import LocalModel
from ..split import block_ranges
from ..step import LocalOutput, local_step
from ..tasks import need_no_taps, units_and_head
from .neighbours import Inbox, Outbox
from .others import forget, keep_only, named_tensors

Batches = Iterable[tuple[Tensor, Tensor]]


class BlockParallel:
    """This process's share of a local model that P processes train, each a run of its blocks.

    Every process builds the same model, makes one of these from it, and runs the same loop::

        for features, target in parallel.batches(loader, len(loader)):
            parallel.step(features, target, step=update)
        parallel.finish()

    The first process alone reads the loader, and its features are the images. That neighbours are
    a batch apart comes by itself, from each waiting for what the one before it sends. Parameters of
    blocks that are not this process's move to the ``meta`` device, and all others to ``device``.

    Args:
        model: The whole model, with equal weights in every process.
        ranges: The blocks of each process, consecutive, e.g. ``[range(0, 3), range(3, 4)]``.
        group: The P processes, e.g. of one dimension of a DeviceMesh; all there are by default.
            Not used where one process has all blocks.
        device: Where this process trains; where the model is by default.
        queue: How many batches' features may be on the way to the next process. With 1, the
            default, training is exact. With more, uneven processes wait less for each other, and
            the copy at the end of a process follows parameters that are ``queue - 1`` updates
            older.

    Raises:
        ValueError: If ``ranges`` are not all blocks in order, or not as many as processes; if
            neighbours share units (overlap).
    """

    def __init__(
        self,
        model: LocalModel,
        ranges: Sequence[range],
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
        queue: int = 1,
    ) -> None:
        alone = len(ranges) == 1 or not dist.is_initialized()
        count = 1 if alone else dist.get_world_size(group)
        _check(ranges, len(model.blocks), count)
        if count > 1:
            model.spec.need_whole_units("block parallelism")
            need_no_taps(model.task, model.decoder.taps if model.decoder else ())
        place = dist.get_rank(group) if count > 1 else 0
        self.model, self.own, self.queue = model, ranges[place], queue
        self.is_first, self.is_last = place == 0, place == count - 1
        self.device = device or next(model.parameters()).device
        self.blocks = model.blocks[self.own.start : self.own.stop]
        self.links = model.links[self.own.start : self.own.stop - 1]
        self.across: MomentumLink | None = None  # from a mirror of the next process's first unit
        self.watched: list[Tensor] = []  # what the process before mirrors
        if model.links and not self.is_last:
            link = model.links[self.own[-1]]
            mirror = copy.deepcopy(link.source).requires_grad_(False).to(self.device)
            self.across = MomentumLink(mirror, link.target)
        keep_only(model, self.blocks, self.device)
        if model.links and not self.is_first:
            self.watched = list(model.links[self.own[0] - 1].source.parameters())
        # Images go as far as an auxiliary looks at them.
        self._image_out = any(one.needs_image for one in model.auxiliaries[self.own.stop :])
        self._came: tuple[Tensor, Tensor]
        self._beside: list[Tensor] = []
        self._left = 0  # batches that have yet to come in this loop
        self.waited = 0.0  # seconds of the host, for neighbours
        self._unmirrored = 0  # the next process's updates that the mirror has yet to take
        if count > 1:
            self._connect(group, place)

    def _connect(self, group: dist.ProcessGroup | None, place: int) -> None:
        ranks = dist.get_process_group_ranks(group)
        forward, back = (_communicator(ranks) for _ in range(2))
        if not self.is_last:
            following = ranks[place + 1]
            self.to_next = Outbox(following, forward)
            self.from_next = Inbox(following, back, self.device)
        if not self.is_first:
            previous = ranks[place - 1]
            self.from_previous = Inbox(previous, forward, self.device)
            self.to_previous = Outbox(previous, back)

    def keep_own(self, average: nn.Module) -> None:
        """Move to ``meta`` what this process has no part of in a copy of the backbone."""
        others = {name for name, t in self.model.backbone.state_dict().items() if t.is_meta}
        forget(average, {id(t) for name, t in named_tensors(average) if name in others})

    # Training -------------------------------------------------------------------------------------

    def batches(self, loader: Batches, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches as they come to this process: features ``(B, ...)`` and target.

        Args:
            loader: Of normalised images ``(B, C, H, W)`` and target, class indices ``(B,)`` or
                probabilities ``(B, classes)``; read in the first process alone.
            count: How many batches, the same in every process; the loader has that many or more.
        """
        self._left = count
        for came in islice(loader, count) if self.is_first else self._from_previous(count):
            self._came, self._left = came, self._left - 1
            yield came
        if self._left:  # some would have been of images alone that cannot be read
            self._say_it_ends()

    def _from_previous(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for left in reversed(range(count)):
            with self._waiting():
                features, *rest = self.from_previous.take()
            if not rest:
                return
            target, *self._beside = rest
            if left:
                self.from_previous.expect()
            yield features, target

    def step(
        self,
        features: Tensor,
        target: Tensor,
        *,
        blocks: Sequence[Callable[..., Any]] | None = None,
        step: Callable[[int], object] | None = None,
        update_momentum: bool = True,
        micro_batches: int = 1,
        **options: Any,
    ) -> LocalOutput:
        """This process's share of one training step.

        Args:
            features: As :meth:`batches` gave them.
            target: Likewise; in the first process perhaps mixed, ``(B, classes)``.
            blocks: This process's blocks, wrapped (DDP, compiled); as they are by default.
            step: Called with the index among this process's blocks, after a block's backward.
            update_momentum: Whether MAN's copies follow in this step, the same in every process.
            micro_batches: Slices of the batch, as :func:`man_zoo.local_step` takes them; what is
                passed on is the whole batch.
            options: ``backward``, ``late``, ``key`` and ``accumulating`` of
                :func:`man_zoo.local_step`; the index is that among this process's blocks.

        Returns:
            Losses ``(own.stop,)`` of all blocks up to this process's last, and its logits.

        Raises:
            ValueError: For images of a size that the auxiliaries do not take, and for micro-batches
                where a local loss compares the images of a batch with each other.
        """
        self.model.check_micro_batches(micro_batches)
        before, image = self._losses_and_image(features)

        def hand_on(features: Any, losses: Tensor) -> None:
            rest = [image] if self._image_out and image is not None else []
            self.to_next.put([features, target, _joined(before, losses), *rest])

        def update(j: int) -> None:
            if step is not None:
                step(j)
            if j == 0 and self.watched and update_momentum:  # early: the one before waits for it
                self.to_previous.put([_vector(self.watched)], headers=False)

        output = local_step(
            self.blocks if blocks is None else blocks,
            self.links,
            features,
            target,
            restored=image,
            step=update,
            update_momentum=update_momentum,
            first=self.own.start,
            pass_on=None if self.is_last else hand_on,
            micro_batches=micro_batches,
            **options,
        )
        del features
        with self._waiting():
            if self.across is not None and update_momentum:
                if self._unmirrored == self.queue:
                    self._mirror()
                self._unmirrored += 1
                self.across.update()
            self._wait(self.queue)  # what goes out now goes while the next batch is trained
        return LocalOutput(output.logits, _joined(before, output.losses))

    def _losses_and_image(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Losses of the blocks before, and the un-normalised image where it is looked at."""
        if self.is_first:
            self.model.check_size(features)
            return None, self.model.restore(features)
        losses, *image = self._beside
        self._beside = []
        return losses, image[0] if image else None

    def _mirror(self) -> None:
        """Take the next process's parameters, as they were after one update more."""
        assert self.across is not None
        mirror = list(self.across.source.parameters())
        vector = _vector(mirror)
        self.from_next.fill([vector])
        for own, new in zip(mirror, vector.split([p.numel() for p in mirror]), strict=True):
            own.copy_(new.view(own.shape))
        self._unmirrored -= 1

    def _wait(self, keep: int = 0) -> None:
        """Wait until no more than ``keep`` messages have yet to arrive, each way."""
        if not self.is_last:
            self.to_next.wait(keep)
        if not self.is_first:
            self.to_previous.wait(keep)

    def finish(self) -> None:
        """Let the last batches pass through: all processes are at the same step after this.

        Called in every process, before validation, before weights are saved, and at the end.
        """
        while self._unmirrored:
            self._mirror()
        if self._left:
            self._leave()
        self._wait()

    def _leave(self) -> None:
        """End a loop before its last batch: what the next process expects by then is a message."""
        if not self.is_first:
            self.from_previous.take()
        self._say_it_ends()

    def _say_it_ends(self) -> None:
        self._left = 0
        if not self.is_last:
            self.to_next.put([torch.zeros(1, device=self.device)])  # a batch is more than one

    def refresh(self) -> None:
        """Mirror the next process's parameters anew; in every process, after loading weights."""
        if self.watched:
            self.to_previous.put([_vector(self.watched)], headers=False)
        if self.across is not None:
            self._unmirrored = 1
        self.finish()

    # Validation -----------------------------------------------------------------------------------

    def through(self, network: nn.Module) -> Callable[[Tensor], list[Tensor]]:
        """A forward pass: features, as :meth:`batches` gave them, to a list of predictions.

        The list has the network's in the last process, and is empty in the others.

        Args:
            network: The model's own, or a copy of it, e.g. its moving average.
        """
        if self.is_first and self.is_last:
            return lambda images: [network(images)]
        units, head = units_and_head(network)
        ranges = block_ranges(self.model.cuts, len(units))
        own = units.modules[ranges[self.own.start].start : ranges[self.own[-1]].stop]

        def forward(features: Tensor) -> list[Tensor]:
            for unit in own:
                features = unit(features)
            self._pass_on(features)
            return [head(features)] if self.is_last else []

        return forward

    def forward_exits(self, features: Any) -> list[Tensor]:
        """Predictions of every block of this process.

        Args:
            features: As :meth:`batches` gave them.
        """
        exits = []
        for block in self.blocks:
            features = block.run_units(features)
            exits.append(block.classify(features))
        self._pass_on(features)
        return exits

    def _pass_on(self, features: Tensor) -> None:
        if not self.is_last:
            _, target = self._came
            self.to_next.put([features, target])
            self._wait()

    # Time -----------------------------------------------------------------------------------------

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun


def _communicator(ranks: list[int]) -> dist.ProcessGroup:
    group = dist.new_group(ranks, use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)  # this process is one of the ranks
    dist.barrier(group)  # all at once: one that its first two users alone connect can hang
    return group


def _check(ranges: Sequence[range], blocks: int, processes: int) -> None:
    if [j for own in ranges for j in own] != list(range(blocks)) or not all(map(len, ranges)):
        raise ValueError(
            f"Every process trains one block or more and all {blocks} are trained, in order; got "
            f"{[list(own) for own in ranges]}."
        )
    if len(ranges) != processes:
        raise ValueError(f"Blocks were given to {len(ranges)} process(es); there are {processes}.")


def _joined(before: Tensor | None, losses: Tensor) -> Tensor:
    return losses if before is None else torch.cat([before, losses])


def _vector(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
