"""Flags that a data set does not read are refused, and not ignored."""

from argparse import Namespace
from collections.abc import Iterable

from ..messages import flag_of

SAMPLES = ("train_num_samples", "val_num_samples")


def refuse(args: Namespace, flags: Iterable[str], why: str) -> None:
    """See that none of some flags is given.

    Args:
        args: From :func:`man_zoo.data.add_data_args`.
        flags: Their names there.
        why: What they are for, and what is expected; goes on from "--flag is for".

    Raises:
        ValueError: If one is.
    """
    for flag in flags:
        if getattr(args, flag) is not None:
            raise ValueError(f"{flag_of(flag)} is for {why}.")
