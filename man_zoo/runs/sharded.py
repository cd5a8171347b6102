"""Tensors that processes share, in a checkpoint: torch.distributed.checkpoint's, in safetensors.

Its own format keeps an index that is a pickle; this one, Hugging Face's, has it in the files' JSON
headers, so that nothing of a run that was passed on is run. Any number of processes reads it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

_FILES = "shard-*.safetensors"  # one a process


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint's tensors are in this format."""
    return any(folder.glob(_FILES))


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors, of a DTensor each process its share; called by all processes."""
    with _own_errors():
        dcp.save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=_alone(),
        )


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors in place, of a DTensor each process its share; called by all processes."""
    with _own_errors():
        dcp.load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=_alone(),
        )


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with ``prefix``, without it; by one process alone."""
    found = list_tensors(folder, prefix)
    tensors = {
        prefix + name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in found.items()
    }
    with _own_errors():
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def list_tensors(folder: Path, prefix: str) -> dict[str, TensorStorageMetadata]:
    """Sizes and dtypes of the tensors whose names begin with ``prefix``, without it."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): saved
        for name, saved in found.items()
        if name.startswith(prefix) and isinstance(saved, TensorStorageMetadata)
    }


def _alone() -> bool:
    return not torch.distributed.is_initialized()


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let what went wrong in one process be raised as it was there, and not with its traceback."""
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from error
