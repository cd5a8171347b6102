"""The end of a process whose main thread may wait for ever: one sentence, and it is gone."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_STDERR = 2


def end(sentence: str, status: int) -> NoReturn:
    """End at once, from whatever thread; of the processes of one machine, one says why."""
    if _is_first_to_speak():
        line = f"\n{Path(sys.argv[0]).name}: {sentence}.\n"
        with suppress(OSError):  # who would have read it has gone too
            os.write(_STDERR, line.encode())  # no lock that another thread holds
    os._exit(status)


def _is_first_to_speak() -> bool:
    """Whether no process beside this one has spoken, as told by torchrun's folder for errors."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    try:
        if file:
            Path(file).parents[1].joinpath("said").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the folder has gone with the launcher
        return True
    return True
