"""Tensors that processes share, in a checkpoint: torch.distributed.checkpoint's, in safetensors.

Its own format keeps an index that is a pickle; this one, Hugging Face's, has it in the files' JSON
headers, so that nothing of a run that was passed on is run. Any number of processes reads it.
"""

import warnings
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
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _plainly():
        dcp.save(dict(tensors), storage_writer=writer, no_dist=_alone())


def read_into(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool | None = None) -> None:
    """Fill tensors in place, of a DTensor each process its share.

    Args:
        tensors: By name.
        folder: The checkpoint.
        alone: Whether one process reads for itself; by default only where there is no other.
    """
    reader = HuggingFaceStorageReader(str(folder))
    with _plainly():
        dcp.load(dict(tensors), storage_reader=reader, no_dist=_alone() if alone is None else alone)


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with ``prefix``, without it; by one process alone."""
    tensors = {
        name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in list_tensors(folder, prefix).items()
    }
    read_into({prefix + name: tensor for name, tensor in tensors.items()}, folder, alone=True)
    return tensors


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
def _plainly() -> Iterator[None]:
    """Raise what went wrong in one process as it was there, and say nothing of being alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            failure, _ = next(iter(error.failures.values()))
            raise failure from error
