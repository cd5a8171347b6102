"""``man-zoo finetune``: training with other defaults, from weights of the zoo or the Hub.

Pretrained weights, a lower learning rate, fewer epochs. ``--method e2e`` trains end to end,
``--tune head`` is a linear probe.
"""

import sys
from collections.abc import Sequence
from typing import Any

from ..console import exit_status
from ..runs.config import parse_args
from .train import train_and_export

DEFAULTS: dict[str, Any] = {
    "model": "resnet20_man_dgl_k4.digits",
    "pretrained": True,
    "lr": 0.02,
    "epochs": 5,
    "warmup_epochs": 0.5,
}


def main(argv: Sequence[str] | None = None, program: str = "man-zoo finetune") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: train_and_export(parse_args(argv, program, **DEFAULTS)))


if __name__ == "__main__":
    sys.exit(main())
