"""Commands as processes of their own, forked from one that has imported the library.

``forks.py`` reads a JSON list of ``[words, place]`` from standard input, runs ``man-zoo WORDS``
with its standard output at each place, to the interpreter's very end, and prints
``[status, stderr]`` of each. The place is a file, or ``""`` for a pipe whose reader has gone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from recipe import ROOT, environment


def run_all(*cases: tuple[Sequence[str], str]) -> list[tuple[int, str]]:
    """Status and standard error of every ``(words, place)``."""
    # Buffered, as where nobody says otherwise.
    variables = {k: v for k, v in environment().items() if k != "PYTHONUNBUFFERED"}
    script = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT,
        check=True,
    )
    return [(status, said) for status, said in json.loads(script.stdout)]


def open_pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


if __name__ == "__main__":
    from man_zoo.commands.__main__ import main

    ends = []
    for words, place in json.load(sys.stdin):
        with tempfile.TemporaryFile("w+") as said:
            if not (child := os.fork()):
                os.dup2(os.open(place, os.O_WRONLY) if place else open_pipe_without_reader(), 1)
                os.dup2(said.fileno(), 2)
                sys.exit(main(words))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            ends.append((status, said.read()))
    print(json.dumps(ends))
