"""Processes that read images outlive a signal to all, and not the process that they read for."""

import subprocess
import sys

import pytest
from recipe import environment

PATIENCE = 120  # seconds, not to wait for ever

# From another process to all of the group, while the readers are born and again when they read.
TO_ALL = """
import os, signal, subprocess, threading, time
from man_zoo.data.readers import Readers
signal.signal(signal.SIGTERM, lambda *_: None)
kill = ["kill", "-TERM", "--", f"-{os.getpgrp()}"]
to_all = lambda: subprocess.run(kill, check=True, start_new_session=True)
os.register_at_fork(after_in_child=lambda: time.sleep(1))
threading.Timer(0.5, to_all).start()
batches = iter(Readers(range(8), num_workers=2))
first = next(batches)
to_all()
assert [first.item(), *(batch.item() for batch in batches)] == list(range(8))
"""

# An error that is still held holds the readers too, as a traceback does.
HELD = """
import sys
from man_zoo.data.readers import Readers
batches = iter(Readers(range(1000), num_workers=2))
next(batches)
sys.exit(3)
"""


@pytest.mark.parametrize(("code", "status"), [(TO_ALL, 0), (HELD, 3)], ids=["to all", "held"])
def test_readers_heed_their_own_process_alone(code, status) -> None:
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, env=environment(), check=False, timeout=PATIENCE, process_group=0
    )
    assert ended.returncode == status
