"""One writer a folder: a lock beside it, which the kernel lets go of when its process ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..console import UserError


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep all other processes from writing a folder, which may be there or not yet.

    Nothing of the lock is left behind, nor a folder above it that was made for it.

    Raises:
        UserError: If another process holds it; says which.
    """
    file = _lock_file(folder)
    made = [above for above in file.parents if not above.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(file, folder):
            yield
    finally:
        for above in made:
            with suppress(OSError):  # it holds something by now
                above.rmdir()


def _lock_file(folder: Path) -> Path:
    folder = folder.resolve()  # the same lock through whatever link
    return folder.parent / f".{folder.name}.lock"


@contextmanager
def _locked(file: Path, folder: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(file)}; wait for its end, or end it."
        ) from None
    try:
        # As filelock's own SoftFileLock has it, which stands in where a file system has no locks.
        file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is ours; who opened it meanwhile makes a new one
        lock.release()


def _holder(file: Path) -> str:
    with suppress(OSError, ValueError):  # gone or empty by now
        pid, host, *_ = file.read_text(encoding="utf-8").split()
        return f"process {pid} on {host}"
    return "another process"
