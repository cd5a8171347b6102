"""Fine-tune weights of the zoo or the Hub: ``accelerate launch recipes/finetune.py [flags]``.

The training recipe, its flags and its run folder, with other defaults: pretrained weights, a lower
learning rate, fewer epochs. ``--method e2e`` trains end to end, ``--tune head`` is a linear probe.
"""

import os
import sys
from typing import Any

from man_zoo.training.config import parse_args
from man_zoo.training.errors import UserError
from man_zoo.training.train import train

DEFAULTS: dict[str, Any] = {
    "model": "resnet20_man_dgl_k4.digits",
    "pretrained": True,
    "lr": 0.02,
    "epochs": 5,
    "warmup_epochs": 0.5,
}


def main() -> int:
    try:
        train(parse_args(**DEFAULTS))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every process meets the same error
            print(f"finetune.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
