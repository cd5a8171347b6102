"""``killed_recipe.py FUNCTION N FLAGS``: the recipe, killed by SIGKILL as FUNCTION is called again.

The first N - 1 calls go through. FUNCTION is a dotted name such as ``torch.save``. N may be
``N:SIGNAL`` or ``N:SIGNAL:RANK``, e.g. ``3:SIGTERM:1``: another signal, one process of several.
"""

import os
import pkgutil
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

function = sys.argv[1]
count, name_of_signal, rank = f"{sys.argv[2]}::".split(":")[:3]
sys.argv[1:] = sys.argv[3:]
owner, _, name = function.rpartition(".")
module = pkgutil.resolve_name(owner)
original = getattr(module, name)
calls = 0


def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count) and rank in ("", os.environ.get("RANK")):
        os.kill(os.getpid(), getattr(signal, name_of_signal or "SIGKILL"))
    return original(*args, **kwargs)


setattr(module, name, counted)
runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="__main__")
