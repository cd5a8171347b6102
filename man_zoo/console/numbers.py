"""Numbers on a command line, each a ``type`` of argparse that says what was expected.

All of them raise :class:`argparse.ArgumentTypeError` for a text that is none.
"""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable

_LARGEST = 3.4e38  # all of them are a float32 in the end


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def positive_or_auto(text: str) -> int | str:
    """A whole number from 1, or ``auto``: the library chooses."""
    return text if text == "auto" else positive(text)


def non_negative(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def finite(text: str) -> float:
    """Any number, but for NaN and the infinities."""
    return _number(text, "a number", lambda value: True)


def positive_number(text: str) -> float:
    """A number above 0."""
    return _number(text, "a number above 0", lambda value: value > 0)


def non_negative_number(text: str) -> float:
    """A number from 0."""
    return _number(text, "a number from 0", lambda value: value >= 0)


def probability(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def fraction(text: str) -> float:
    """A part of something, never nothing: a number above 0 and up to 1."""
    return _number(text, "a number above 0 and up to 1", lambda value: 0 < value <= 1)


def below_one(text: str) -> float:
    """The weight of what was in a moving average: a number from 0 and below 1."""
    return _number(text, "a number from 0 and below 1", lambda value: 0 <= value < 1)


def seed(text: str) -> int:
    """A whole number that seeds every generator, numpy's with the least room among them."""
    return _whole(text, 0, 2**31 - 1)  # so that every process can add its rank


def threads(text: str) -> int:
    """A number of threads that OpenMP can start; it ends the process where it cannot."""
    return _whole(text, 1, 1024)


def image_size(text: str) -> int | str:
    """Pixels of a square image's side, or ``512x1024``, height and width; still a text then."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ArgumentTypeError(
            f"expected a whole number from 1, or two such as 512x1024, got {text!r}"
        )
    return int(text) if len(sides) == 1 else text


def height_width(size: int | str) -> tuple[int, int]:
    """Height and width, of what :func:`image_size` gives."""
    height, *width = map(int, str(size).split("x"))
    return (height, width[0]) if width else (height, height)


def memory_size(text: str) -> str:
    """A size with its unit, above 0; still a text, as the planner takes it."""
    match = re.fullmatch(r"((\d*\.)?\d+) ?[KMG]i?B", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ArgumentTypeError(f"expected a size such as 6GiB, got {text!r}")
    return text


def memory_sizes(text: str) -> list[str]:
    """Sizes with commas between them."""
    try:
        return [memory_size(size.strip()) for size in text.split(",")]
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"expected sizes such as 24GiB,12GiB, got {text!r}") from error


def _whole(text: str, least: int, most: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        expected = f"{least}" if most is None else f"{least} to {most}"
        raise ArgumentTypeError(f"expected a whole number from {expected}, got {text!r}")
    return int(text)


def _number(text: str, expected: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (abs(value) <= _LARGEST and fits(value)):
        raise ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
