"""Errors that a user can put right: each ends a command with one sentence and no traceback."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .credentials import without_credentials

# What a disk or its owner refuses, even of a stream that has no name.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_INTERRUPTED = 130  # what a shell makes of Ctrl-C
_NO_READER = 141  # and of a pipe whose reader has gone


class UserError(Exception):
    """Something in the flags, the data or the run's course that is no bug; says what to change."""

    of_one_process = False  # of many: whether the others go on without a word of it
    status = 1  # of the command that it ends

    def __init__(self, sentence: str) -> None:
        super().__init__(without_credentials(sentence))


@contextmanager
def user_errors(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Take exceptions of these kinds for the user's to put right.

    Only around code that checks what the user gave: anywhere else the same kinds are bugs.

    Args:
        kinds: Exceptions to take; ``ValueError`` and ``OSError`` if none are named.
        about: What the sentence begins with, e.g. a flag.

    Raises:
        UserError: In their place, with their message on one line, and their notes.
    """
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except kinds as error:
        sentence = " ".join(str(error).split())
        users = UserError(f"{about}: {sentence}" if about else sentence)
        for note in getattr(error, "__notes__", ()):
            users.add_note(note)
        raise users from error


@contextmanager
def noted(note: str, once: Path | None = None) -> Iterator[None]:
    """Let what stops this code from outside, Ctrl-C or a full disk, end with a note of what to do.

    Args:
        note: A sentence; one that follows others after a semicolon.
        once: A file that has to be there for the note to be true.
    """
    try:
        yield
    except UserError:
        raise  # says by itself what to do
    except BaseException as error:
        if once is None or once.is_file():
            error.add_note(note)
        raise


def exit_status(program: str, run: Callable[[], object]) -> int:
    """Run a command, and end it as a command ends.

    Returns:
        0; 1 after a :class:`UserError` that has no other ``status``, or a file or disk that is
        full, closed to us or not what the command takes it for, whose sentence goes to standard
        error; 130 after Ctrl-C; 141 if nobody reads what the command prints.
    """
    try:
        with suppress(SystemExit), _threads_leave_it_to_us():  # argparse's, after --help
            run()
        print(end="", flush=True)
    except KeyboardInterrupt as error:
        _say(program, "interrupted", error)
        return _INTERRUPTED
    except BrokenPipeError:
        _print_what_can_be()
        return _NO_READER
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _say(program, sentence, error)
        return getattr(error, "status", 1)
    return 0


def _sentence(error: Exception) -> str | None:
    """What a user is told of an error; ``None`` for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if _is_of_memory(error):
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        return f"there is not enough memory ({first.rstrip('.')}); a smaller batch needs less"
    if not isinstance(error, OSError) or not (_is_of_a_disk(error) or error.filename):
        return None
    where = f"{error.filename}: " if error.filename else ""
    full = "; nothing half-written is left" if error.errno in _FULL else ""
    return f"{where}{error.strerror}{full}"


def _is_of_a_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (*_FULL, *_CLOSED)


def _is_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError is that of accelerators alone.
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def _threads_leave_it_to_us() -> Iterator[None]:
    """No traceback of a thread (TensorBoard's) that a disk refuses what it will refuse us too."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not _is_of_a_disk(args.exc_value):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _print_what_can_be() -> None:
    try:
        print(end="", flush=True)
    except OSError:
        # Python would try once more at its end, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(program: str, sentence: str, error: BaseException) -> None:
    _print_what_can_be()  # before the sentence, where both go to one file
    # Every process meets the same error, but for those that say otherwise.
    if os.environ.get("RANK", "0") == "0" or getattr(error, "of_one_process", False):
        clauses = (clause.rstrip(".") for clause in (sentence, *getattr(error, "__notes__", ())))
        print(f"{program}: {'; '.join(clauses)}.", file=sys.stderr)
