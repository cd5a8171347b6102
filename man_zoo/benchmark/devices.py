"""Where steps are timed, and whose memory is counted."""

from argparse import Namespace

import torch

from ..messages import unknown
from ..target import DEVICES


def memory_device(args: Namespace) -> str:
    """Whose step the memory is of: the device's that is timed, CUDA's where none is.

    Raises:
        ValueError: For a device whose rules are not known.
    """
    if args.block_parallel:
        return "cpu"
    name = args.device or ("cuda" if not args.time else find_device(None).type)
    kind = name.split(":")[0]
    if not args.time and kind not in DEVICES:
        raise unknown("device", name, DEVICES)
    return "cuda" if kind == "cuda" else "cpu"


def find_device(name: str | None) -> torch.device:
    """The device of that name; the accelerator, or else the CPU, for ``None``.

    Raises:
        ValueError: If there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = ["cpu", *([accelerator.type] if accelerator else [])]
    name = name or here[-1]
    if name.split(":")[0] not in here:
        raise unknown("device", name, here)
    return torch.device(name)
