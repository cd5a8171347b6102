"""What a process may use of its machine."""

import os

import torch
from accelerate.utils import parse_flag_from_env


def on_cpu() -> bool:
    """Whether ``accelerate launch --cpu`` asks for the CPU, or there is nothing else.

    Said to Accelerate, because it makes separate runs of several CPU processes otherwise.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def share_of_cores() -> int:
    """The cores that this process may use, divided by the processes of this machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
