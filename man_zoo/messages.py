"""The words of an error: one clear sentence that says what was wrong and what was expected."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, given: object, valid: Iterable[object]) -> ValueError:
    """The error for a name that is not among ``valid``; the caller raises it.

    Args:
        kind: What the name names, e.g. ``"method"``.
        given: The name that was given.
        valid: Every name that would have been accepted.
    """
    names = [str(name) for name in valid]
    near = get_close_matches(str(given), names, n=1, cutoff=0.0)
    listed = ", ".join(names) if len(names) <= 20 else f"one of {len(names)}"
    hint = f" The nearest is {near[0]!r}." if near else ""
    return ValueError(f"Unknown {kind} {str(given)!r}; expected {listed}.{hint}")


def flag_of(dest: str) -> str:
    """``train_subset`` -> ``--train-subset``."""
    return "--" + dest.replace("_", "-")
