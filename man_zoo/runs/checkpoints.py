"""The checkpoints of a run, as their readers see them: which there are, and the weights in one."""

import re
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from ..console import user_errors
from ..local_model import LocalModel
from ..messages import unknown
from .checksums import compare_checksums
from .folder import BEST
from .sharded import is_sharded, list_tensors, read_tensors
from .untrusted import check_files

WEIGHTS = "model.safetensors"  # of the LocalModel, auxiliaries among them
AVERAGE = "average.safetensors"  # of the network, with --model-ema
_NAME = re.compile(r"epoch-\d+(-batch-\d+)?")


def checkpoint_name(epoch: int, batches: int = 0) -> str:
    """The folder of the checkpoint after ``epoch`` epochs and, where a run was stopped, batches."""
    return f"epoch-{epoch:04d}" + (f"-batch-{batches:06d}" if batches else "")


def position(checkpoint: Path) -> tuple[int, int]:
    """Epochs that were finished, and batches of the next."""
    epoch, _, batches = checkpoint.name.removeprefix("epoch-").partition("-batch-")
    return int(epoch), int(batches or 0)


def epoch_of(checkpoint: Path) -> int:
    """Epochs that were finished when a checkpoint was written."""
    return position(checkpoint)[0]


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of finished epochs that were written to their end, oldest first."""
    return [path for path in list_all_checkpoints(folder) if position(path)[1] == 0]


def list_all_checkpoints(folder: Path) -> list[Path]:
    """These and, in their order, of epochs in which the run was stopped: for it to go on from."""
    found = (
        path for path in folder.glob("epoch-*") if path.is_dir() and _NAME.fullmatch(path.name)
    )
    return sorted(found, key=position)


def find_checkpoint(folder: Path, name: str = "last") -> Path:
    """``"last"``, ``"best"``, or the name of a folder in a run's ``checkpoints``.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    named = {path.name: path for path in list_checkpoints(folder)}
    if not named:
        raise ValueError(f"{folder} holds no checkpoint yet of a finished epoch.")
    if name == "last":
        return list(named.values())[-1]
    if name == BEST:
        best = (folder / BEST).resolve().name
        if best not in named:
            raise ValueError(f"{folder} holds no validated checkpoint yet, so none is the best.")
        return named[best]
    if name not in named:
        raise unknown("checkpoint", name, ["last", BEST, *named])
    return named[name]


def load_weights(model: LocalModel, checkpoint: Path) -> None:
    """Load the weights of a model and its auxiliaries from a checkpoint.

    Raises:
        UserError: If it is damaged, or of another model.
    """
    compare_checksums(checkpoint)
    _load(model, checkpoint, WEIGHTS)


def load_network(model: LocalModel, checkpoint: Path) -> None:
    """Load the weights of backbone and decoder from a checkpoint; the auxiliaries stay there.

    Raises:
        UserError: If it is damaged, or of another model.
    """
    compare_checksums(checkpoint)
    _load(model.backbone, checkpoint, WEIGHTS, "backbone.")
    if model.decoder is not None:
        _load(model.decoder, checkpoint, WEIGHTS, "decoder.")


def load_average(model: LocalModel, checkpoint: Path) -> None:
    """Load the moving average of the network's weights (``--model-ema``) from a checkpoint.

    Raises:
        ValueError: If the run kept none.
        UserError: If it is damaged, or of another model.
    """
    compare_checksums(checkpoint)
    if not _has(checkpoint, AVERAGE):
        raise ValueError(f"{checkpoint} has no moving average; train with --model-ema for one.")
    _load(model.network, checkpoint, AVERAGE)


def _has(checkpoint: Path, file: str) -> bool:
    if not is_sharded(checkpoint):
        return (checkpoint / file).exists()
    check_files(checkpoint)
    return bool(list_tensors(checkpoint, f"{file}/"))


def _load(module: nn.Module, checkpoint: Path, file: str, prefix: str = "") -> None:
    sharded = is_sharded(checkpoint)
    if sharded:
        check_files(checkpoint)
    path = checkpoint if sharded else checkpoint / file
    with user_errors(Exception, about=f"{path} does not hold this run's weights"):
        if sharded:
            module.load_state_dict(read_tensors(checkpoint, f"{file}/{prefix}"))
        else:
            module.load_state_dict(_read(path, prefix))


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
