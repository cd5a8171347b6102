"""``several.py N SCRIPT WORD...``: torchrun, but its processes are forked with man_zoo imported.

That takes most of their time. tests/test_launcher.py starts torchrun itself.
"""

import runpy
import sys

from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import man_zoo.commands.train  # noqa: F401  # before they are forked


def run(script: str, *words: str) -> None:
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


@record
def main(count: str, *words: str) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(count),
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, run)(*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
