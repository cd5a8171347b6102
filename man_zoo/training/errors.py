"""Errors that a user can put right: each ends a run with one sentence and no traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something in the flags, the data or the run's course that is no bug; says what to change."""


class NonFiniteLoss(UserError):
    """Training diverged: a local loss or a block's weights became NaN or infinite."""


@contextmanager
def user_errors(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Take exceptions of these kinds for the user's to put right.

    Only around code that checks what the user gave: anywhere else the same kinds are bugs.

    Args:
        kinds: Exceptions to take; ``ValueError`` and ``OSError`` if none are named.
        about: What the sentence begins with, e.g. a flag.

    Raises:
        UserError: In their place, with their message on one line.
    """
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except kinds as error:
        sentence = " ".join(str(error).split())
        raise UserError(f"{about}: {sentence}" if about else sentence) from error


def exit_status(program: str, run: Callable[[], object]) -> int:
    """Of a command: 0, or 1 after a :class:`UserError`, whose sentence goes to standard error."""
    try:
        run()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every process meets the same error
            print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
