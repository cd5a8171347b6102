"""A bar while something is planned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def measuring() -> Iterator[Callable[[], object]]:
    """A bar for ``Planner(progress=...)``, on a terminal; how many steps come nobody knows."""
    with tqdm(desc="planning", unit=" steps", leave=False, disable=None) as bar:
        yield bar.update
