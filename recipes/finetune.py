"""Fine-tune weights of the zoo or the Hub: ``accelerate launch recipes/finetune.py [flags]``.

The training recipe, its flags and its run folder, with other defaults: pretrained weights, a lower
learning rate, fewer epochs. ``--method e2e`` trains end to end, ``--tune head`` is a linear probe.
"""

import sys
from typing import Any

from man_zoo.training.config import parse_args
from man_zoo.training.errors import exit_status
from man_zoo.training.train import train

DEFAULTS: dict[str, Any] = {
    "model": "resnet20_man_dgl_k4.digits",
    "pretrained": True,
    "lr": 0.02,
    "epochs": 5,
    "warmup_epochs": 0.5,
}


if __name__ == "__main__":
    sys.exit(exit_status("finetune.py", lambda: train(parse_args(**DEFAULTS))))
