"""The checkpoints of a run, as their readers see them: which there are, and the weights in one."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from ..local_model import LocalModel
from ..messages import unknown

WEIGHTS = "model.safetensors"  # of the LocalModel, auxiliaries among them
AVERAGE = "average.safetensors"  # of the backbone, with --model-ema
BEST = "best"  # a link to the best epoch
_BACKBONE = "backbone."


def checkpoint_name(epoch: int) -> str:
    """The folder of the checkpoint after ``epoch`` epochs."""
    return f"epoch-{epoch:04d}"


def epoch_of(checkpoint: Path) -> int:
    """Epochs that were finished when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("epoch-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("epoch-*"), key=epoch_of)


def find_checkpoint(folder: Path, name: str = "last") -> Path:
    """``"last"``, ``"best"``, or the name of a folder in a run's ``checkpoints``.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    complete = list_checkpoints(folder)
    if not complete:
        raise ValueError(f"{folder} holds no checkpoint yet.")
    if name == "last":
        return complete[-1]
    if name == "best":
        if not (folder / BEST).exists():
            raise ValueError(f"{folder} holds no validated checkpoint yet, so none is the best.")
        return (folder / BEST).resolve()
    named = {path.name: path for path in complete}
    if name not in named:
        raise unknown("checkpoint", name, ["last", BEST, *named])
    return named[name]


def load_backbone(model: LocalModel, checkpoint: Path) -> None:
    """Load the backbone's weights from a checkpoint, and leave the auxiliaries there."""
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if name.startswith(_BACKBONE)]  # noqa: SIM118
        tensors = {name.removeprefix(_BACKBONE): file.get_tensor(name) for name in names}
    model.backbone.load_state_dict(tensors)


def load_average(model: LocalModel, checkpoint: Path) -> None:
    """Load the moving average of the backbone's weights (``--model-ema``) from a checkpoint.

    Raises:
        ValueError: If the run kept none.
    """
    path = checkpoint / AVERAGE
    if not path.exists():
        raise ValueError(f"{checkpoint} has no moving average; train with --model-ema for one.")
    model.backbone.load_state_dict(load_file(path))
