"""Numbers on the command line: what is taken, and the sentence for what is not."""

from argparse import ArgumentTypeError

import pytest

from man_zoo.console.numbers import (
    below_one,
    finite,
    fraction,
    memory_size,
    memory_sizes,
    non_negative,
    non_negative_number,
    positive,
    positive_number,
    probability,
    seed,
    threads,
)

TAKEN = [
    (positive, "1", 1),
    (positive, "1024", 1024),
    (non_negative, "0", 0),
    (non_negative, "12", 12),
    (finite, "-1e-3", -0.001),
    (positive_number, "0.5", 0.5),
    (non_negative_number, "0", 0.0),
    (probability, "0", 0.0),
    (probability, "1", 1.0),
    (fraction, "1e-6", 1e-6),
    (fraction, "1", 1.0),
    (below_one, "0", 0.0),
    (below_one, "0.9999", 0.9999),
    (seed, "0", 0),
    (seed, "2147483647", 2**31 - 1),
    (threads, "1024", 1024),
    (finite, "-1e38", -1e38),
    (memory_size, "6GiB", "6GiB"),
    (memory_size, ".5 gb", ".5 gb"),
    (memory_sizes, "24GiB, 12GiB", ["24GiB", "12GiB"]),
]
REFUSED = [
    (positive, ("0", "-1", "1.5", "two", "", "nan"), "a whole number from 1"),
    (non_negative, ("-1", "0.5", "inf"), "a whole number from 0"),
    (finite, ("nan", "inf", "-inf", "1e999", "x", ""), "a number"),
    (positive_number, ("0", "-0.1", "nan", "inf"), "a number above 0"),
    (non_negative_number, ("-1e-9", "nan", "inf", "1e39"), "a number from 0"),
    (threads, ("0", "1025", "100000"), "a whole number from 1 to 1024"),
    (probability, ("7", "-0.1", "1.0001", "nan", "half"), "a number from 0 to 1"),
    (fraction, ("0", "1.1", "nan"), "a number above 0 and up to 1"),
    (below_one, ("1", "2", "-0.1", "nan"), "a number from 0 and below 1"),
    (seed, ("-1", "2147483648", "1.5", "x"), "a whole number from 0 to 2147483647"),
    (
        memory_size,
        ("0GiB", "0.0 MB", "-1GiB", "nanGiB", "6 apples", "6"),
        "a size such as 6GiB",
    ),
    (memory_sizes, ("6GiB,x", "6GiB,", ""), "sizes such as 24GiB,12GiB"),
]


@pytest.mark.parametrize(("kind", "text", "value"), TAKEN)
def test_what_fits_is_taken(kind, text, value):
    assert kind(text) == value
    assert type(kind(text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [(kind, text, expected) for kind, texts, expected in REFUSED for text in texts],
)
def test_what_does_not_fit_gets_a_sentence(kind, text, expected):
    with pytest.raises(ArgumentTypeError) as caught:
        kind(text)
    assert str(caught.value) == f"expected {expected}, got {text!r}"
