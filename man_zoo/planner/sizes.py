"""Sizes of memory as people write them."""

from accelerate.utils import convert_file_size_to_int

GIB, MIB = 2**30, 2**20


def budget_bytes(budget: float | str) -> int:
    """``"6GiB"``, ``"800MB"`` or a number of bytes, in bytes.

    Raises:
        ValueError: If it is neither.
    """
    try:
        if isinstance(budget, str):
            # In capitals, for Accelerate reads "gb" as bits.
            size = convert_file_size_to_int(budget.replace(" ", "").upper())
        else:
            size = int(budget)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(
            f"memory_budget={budget!r} is no size; expected a number of bytes or e.g. '6GiB'."
        )
    return size


def in_gib(size: float) -> str:
    """Bytes in GiB, with digits enough for a small network."""
    return f"{size / GIB:.2f}" if size >= GIB / 10 else f"{size / GIB:.3f}"
