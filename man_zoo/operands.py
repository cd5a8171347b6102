"""What an operator reads and returns, as a dispatch mode sees it."""

from collections.abc import Iterable, Iterator

from torch import Tensor


def tensors_among(values: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results, which nest no deeper than a list.

    Modes ask this at every operator; torch's pytree knows more and takes far longer.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (inner for inner in value if isinstance(inner, Tensor))
