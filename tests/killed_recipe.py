"""``killed_recipe.py FUNCTION N FLAGS``: the recipe, killed by SIGKILL as FUNCTION is called again.

The first N - 1 calls go through. FUNCTION is a dotted name such as ``torch.save``.
"""

import os
import pkgutil
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

function, count = sys.argv[1], int(sys.argv[2])
sys.argv[1:] = sys.argv[3:]
owner, _, name = function.rpartition(".")
module = pkgutil.resolve_name(owner)
original = getattr(module, name)
calls = 0


def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


setattr(module, name, counted)
runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="__main__")
