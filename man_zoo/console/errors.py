"""Errors that a user can put right: each ends a command with one sentence and no traceback."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What a disk or its owner refuses; any other OSError is a bug until a command says otherwise.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
_INTERRUPTED = 130  # what a shell makes of Ctrl-C
_NO_READER = 141  # and of a pipe whose reader has gone


class UserError(Exception):
    """Something in the flags, the data or the run's course that is no bug; says what to change."""

    of_one_process = False  # of many: whether the others go on without a word of it


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
    """Run a command, and end it as a command ends.

    Returns:
        0; 1 after a :class:`UserError` or a disk that is full or closed to us, whose sentence goes
        to standard error; 130 after Ctrl-C; 141 if nobody reads what the command prints.
    """
    try:
        run()
        sys.stdout.flush()
    except UserError as error:
        _say(program, str(error), error.of_one_process)
    except BrokenPipeError:
        # Python would try once more to flush what is left, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER
    except OSError as error:
        if error.errno not in _OF_A_DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _say(program, f"{where}{error.strerror}; nothing half-written is left.")
    except KeyboardInterrupt:
        _say(program, "interrupted.")
        return _INTERRUPTED
    else:
        return 0
    return 1


def _say(program: str, sentence: str, of_one_process: bool = False) -> None:
    if of_one_process or os.environ.get("RANK", "0") == "0":
        print(f"{program}: {sentence}", file=sys.stderr)
