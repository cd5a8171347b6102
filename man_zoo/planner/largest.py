"""The largest batch or image that fits into a memory, for each way to train."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ..console import table
from ..messages import unknown
from ..meter import tensors_of
from .affine import last_within
from .alternatives import (
    END_TO_END,
    Alternative,
    NotInOneGraph,
    alternatives,
    alternatives_of,
    fixed_bytes,
    meter_step,
)
from .images import side_step
from .piece import bytes_of
from .plan import Plan
from .planner import Planner
from .sizes import GIB

BATCH, IMAGE = "batch", "image"


@dataclass(frozen=True)
class Largest:
    """The largest size that fits.

    Args:
        name: How it is trained.
        size: Images a step, or pixels of an image's side; 0 where not even the smallest fits.
        peak: Bytes of a step of that size.
        flops: Arithmetic of an image.
        end_to_end: The same end to end, where nothing is recomputed.
        plan: Of local learning.
        reason: Why it is not there at all, in a sentence.
    """

    name: str
    size: int
    peak: int = 0
    flops: int = 0
    end_to_end: int = 0
    plan: Plan | None = None
    reason: str = ""


def largest(
    planner: Planner,
    what: str,
    budget: int,
    k: int | None = None,
    ways: Mapping[str, Alternative] | None = None,
) -> list[Largest]:
    """The largest batch or image side within a memory, end to end in several ways and as planned.

    Args:
        planner: For the backbone, method and setting; the search begins at its batch and images.
        what: ``"batch"``, in images a step, or ``"image"``, in pixels of a square image's side: a
            multiple of what the network's maps are smaller by, or of a patch.
        budget: Bytes for everything that lives during a step.
        k: Number of local blocks; free if left out.
        ways: To train end to end, by name; all of them if left out.

    Returns:
        End to end, its alternatives, local learning. A batch that is accumulated is a multiple of
        its slices.

    Raises:
        ValueError: For another word than these, an impossible K, a backbone that takes one image
            size only, a budget that nothing fits into.
    """
    if what not in (BATCH, IMAGE):
        raise unknown("size", what, (BATCH, IMAGE))
    weights = sum(bytes_of(tensor) for tensor in tensors_of(planner.backbone))
    if weights > budget:
        raise ValueError(
            f"{planner.name} does not fit into {budget / GIB:.2f} GiB: its weights alone take "
            f"{weights / GIB:.2f} GiB."
        )
    search = _Search(planner, what, budget)
    if ways is None:
        others = alternatives_of(planner) if what == IMAGE else alternatives(planner.setting.opt)
        ways = {"end to end": END_TO_END} | others
    found = [search.possible(name, way) for name, way in ways.items()]
    found.append(search.planned(k))
    if not any(row.size for row in found):
        step, images = side_step(planner.backbone), planner.setting.batch_size
        least = "one image a step" if what == BATCH else f"{images} images of {step} pixels"
        raise ValueError(
            f"{planner.name} does not train within {budget / GIB:.2f} GiB, not even with {least}."
        )
    return found


class _Search:
    """For the last size within a budget; sizes are counted from 1, in what :meth:`_step` says."""

    def __init__(self, planner: Planner, what: str, budget: int) -> None:
        self.planner, self.what, self.budget = planner, what, budget
        self._of_image: dict[tuple[int, ...], int] = {}

    def possible(self, name: str, way: Alternative) -> Largest:
        """The answer for a way to train end to end, or why there is none."""
        try:
            return self.alternative(name, way)
        except NotInOneGraph as error:
            return Largest(name, 0, reason=str(error))

    def alternative(self, name: str, way: Alternative) -> Largest:
        """The answer for a way to train end to end."""
        at = self._sizes(self.planner, way.slices)
        compiled = way.activation_budget is not None  # which takes seconds for every size
        cost = cache(lambda n, arithmetic: meter_step(at(n), way, arithmetic))
        n = self._last(
            lambda n: cost(n, compiled).peak,
            self._start(way.slices),
            fixed_bytes(self.planner, way),
            exact=not compiled,
        )
        if n == 0:
            return Largest(name, 0)
        whole, images = cost(n, True), at(n).setting.batch_size
        if way == END_TO_END:
            self._of_image[at(n).input_size] = whole.flops // images
        size = n * self._step(way.slices)
        return Largest(name, size, whole.peak, whole.flops // images, self._end_to_end(at(n)))

    def planned(self, k: int | None) -> Largest:
        """The last of one split, then of the split that takes least after it, until none fits.

        MAN's form is the one that takes less where the search begins.
        """
        name = f"{self.planner.method}, as planned"
        least = self.planner.smallest(k)
        at = self._sizes(self.planner.in_form(least.form))
        n = self._last_of_split(least, at, self._start())
        while (least := at(n + 1).smallest(k)).cost.peak <= self.budget:
            n = self._last_of_split(least, at, n + 1)
        if n == 0:
            return Largest(name, 0)
        plan = at(n).within(self.budget, k)
        flops, whole = (c.total // plan.setting.batch_size for c in (plan.cost, plan.end_to_end))
        return Largest(name, n * self._step(), plan.cost.peak, flops, whole, plan)

    def _last_of_split(self, plan: Plan, at: Callable[[int], Planner], start: int) -> int:
        spec = plan.spec

        def peak(n: int) -> int:
            return at(n).cuts(spec.k, spec.cuts, spec.recompute).cost.peak

        return self._last(peak, start, fixed_bytes(self.planner, END_TO_END))

    def _last(
        self, peak: Callable[[int], int], start: int, fixed: int, *, exact: bool = True
    ) -> int:
        power = 1 if self.what == BATCH else 2
        return last_within(peak, self.budget, start, fixed, power=power, exact=exact)

    def _sizes(self, planner: Planner, slices: int = 1) -> Callable[[int], Planner]:
        """The planner of every size."""
        step, key = self._step(slices), "batch_size" if self.what == BATCH else "side"
        return cache(lambda n: planner.resized(**{key: n * step}))

    def _start(self, slices: int = 1) -> int:
        begun = {BATCH: self.planner.setting.batch_size, IMAGE: self.planner.input_size[1]}
        return max(begun[self.what] // self._step(slices), 1)

    def _step(self, slices: int = 1) -> int:
        """Images, or pixels, from one size to the next."""
        least = self.planner.task.least_images
        return slices * least if self.what == BATCH else side_step(self.planner.backbone)

    def _end_to_end(self, planner: Planner) -> int:
        """Arithmetic of an image end to end."""
        if planner.input_size not in self._of_image:
            flops = meter_step(planner, END_TO_END).flops
            self._of_image[planner.input_size] = flops // planner.setting.batch_size
        return self._of_image[planner.input_size]


def render(found: Sequence[Largest], what: str) -> str:
    """The answers as a table; arithmetic is that of one image."""
    unit = "images" if what == BATCH else "pixels"
    header = ("", "K", unit, "peak GiB", "GFLOP an image", "of e2e")
    return table(header, [list(_cells(row)) for row in found])


def _cells(row: Largest) -> Iterator[object]:
    yield row.name
    yield row.plan.spec.k if row.plan else 1
    if row.size == 0:
        yield from ("none", "", "", row.reason)
        return
    yield row.size
    yield f"{row.peak / GIB:.2f}"
    yield f"{row.flops / 1e9:.1f}"
    yield f"{row.flops / row.end_to_end:.2f}"
