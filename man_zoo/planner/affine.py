"""The last size that fits, from few sizes looked at.

Memory is nearly affine in the images of a batch and in the pixels of an image. A line through two
sizes that were looked at therefore nearly says where to look next.
"""

from collections.abc import Callable, Mapping

# Sizes looked at by the line; where it leads nowhere, what is left is halved and halved again.
_GUESSES = 12


def last_within(
    peak: Callable[[int], int],
    budget: int,
    start: int,
    fixed: int = 0,
    *,
    power: int = 1,
    exact: bool = True,
) -> int:
    """The largest ``n`` from 1 on with ``peak(n) <= budget``; 0 if there is none.

    Args:
        peak: Bytes at a size, growing with it; dear to ask.
        budget: In bytes.
        start: The first size to look at.
        fixed: About the bytes at size 0, where the line begins.
        power: Of the size that bytes are nearly affine in.
        exact: Whether the next size is looked at as well; else the search ends where the line says
            that less than a hundredth is left.
    """
    seen = {0: fixed}
    low, high, n = 0, None, start
    while high is None or high - low > 1:
        seen[n] = peak(n)
        if seen[n] <= budget:
            low = n
        else:
            high = n
        n = _where(seen, budget, power)
        if low and n <= 1.01 * low and not exact:
            break
        if high is None:
            n = max(n, low + 1)
        elif len(seen) < _GUESSES:
            n = min(max(n, low + 1), high - 1)
        else:
            n = (low + high) // 2
    return low


def _where(seen: Mapping[int, int], budget: int, power: int) -> int:
    """Where a line through the two sizes nearest to the budget meets it."""
    near = sorted(seen.items(), key=lambda size: abs(size[1] - budget))[:2]
    (x1, y1), (x2, y2) = ((n**power, size) for n, size in near)
    if y1 == y2:
        return 2 * max(seen)
    x = x1 + (budget - y1) * (x2 - x1) / (y2 - y1)
    return int(max(x, 0) ** (1 / power) + 1e-9)
