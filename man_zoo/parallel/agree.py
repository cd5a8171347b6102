"""Decisions that are one process's, and everyone's."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def agree(decide: Callable[[], T]) -> T:
    """What the main process finds, in every process; where it fails, all fail alike.

    Args:
        decide: Called by the main process alone; what it returns or raises is pickled.
    """
    decision: list = [None, None]
    if PartialState().is_main_process:
        try:
            decision[0] = decide()
        except Exception as error:
            decision[1] = error
    decided, failure = broadcast_object_list(decision)
    if failure is not None:
        raise failure
    return decided
