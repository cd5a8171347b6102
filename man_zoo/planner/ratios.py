"""What a training step costs beside end to end's."""

from typing import Generic, Protocol, TypeVar

from .sizes import GIB


class Totals(Protocol):
    """Peak bytes and arithmetic of a whole step."""

    @property
    def peak(self) -> int: ...

    @property
    def total(self) -> int: ...


C = TypeVar("C", bound=Totals)


class BesideEndToEnd(Generic[C]):
    """A step's cost in GiB and relative to end to end; who has it says what the step is."""

    cost: C
    end_to_end: C

    @property
    def peak_gib(self) -> float:
        """Peak of live tensors over a step, in GiB."""
        return self.cost.peak / GIB

    @property
    def memory_ratio(self) -> float:
        """That peak relative to end to end."""
        return self.cost.peak / self.end_to_end.peak

    @property
    def arithmetic_ratio(self) -> float:
        """Arithmetic of a step relative to end to end."""
        return self.cost.total / self.end_to_end.total
