"""Checkpoints of a run: one folder an epoch, complete or not there; ``best`` points at one."""

import os
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..local_model import LocalModel
from ..messages import unknown
from .errors import UserError

WEIGHTS = "model.safetensors"
_BACKBONE = "backbone"


@dataclass
class Progress:
    """How far a run is: saved in every checkpoint.

    Args:
        epoch: Epochs finished.
        best_epoch: The epoch of the best validation accuracy.
        best_top1: That accuracy, in percent.
        losses: Mean local losses ``(K,)`` of the last epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_top1: float = -1.0
    losses: list[float] = field(default_factory=list)

    def advance(self, losses: list[float], top1: float | None) -> None:
        """Count an epoch that ended with these losses and this accuracy, if it was validated."""
        self.epoch, self.losses = self.epoch + 1, losses
        if top1 is not None and top1 > self.best_top1:
            self.best_epoch, self.best_top1 = self.epoch, top1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Checkpoints:
    """Saves and restores a run through Accelerate.

    Accelerate keeps optimizers, random states, the gradient scaler and whatever is registered for
    checkpointing; the weights of all blocks go into one file, the LocalModel's own state_dict.

    Args:
        accelerator: With the blocks and their optimizers prepared.
        model: The model that the blocks are parts of.
        folder: The run's ``checkpoints`` folder.
        keep: How many of the newest to keep beside the best.
    """

    def __init__(
        self, accelerator: Accelerator, model: LocalModel, folder: Path, keep: int
    ) -> None:
        self.accelerator, self.model, self.folder, self.keep = accelerator, model, folder, keep
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            tensors = self.model.state_dict()
            save_file({name: t.contiguous() for name, t in tensors.items()}, Path(folder) / WEIGHTS)

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        self.model.load_state_dict(load_file(Path(folder) / WEIGHTS))

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of a finished epoch; a run killed meanwhile still has the last."""
        unfinished = self.folder / ".unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            unfinished.rename(self.folder / _name(progress.epoch))
            self._tidy(progress)

    def _tidy(self, progress: Progress) -> None:
        """Let ``best`` point at the best epoch, and drop what need not be kept.

        All of it every time: a run killed in here leaves nothing that the next time misses.
        """
        best = _name(progress.best_epoch)
        if progress.best_epoch:
            link = self.folder / ".best"
            link.unlink(missing_ok=True)
            link.symlink_to(best)
            os.replace(link, self.folder / "best")
        for old in list_checkpoints(self.folder)[: -self.keep]:
            if old.name != best:
                shutil.rmtree(old)

    def resume(self) -> None:
        """Load the newest complete checkpoint; nothing if the run was stopped before its first.

        Raises:
            UserError: If the run has another number of processes than the checkpoint.
        """
        for newest in list_checkpoints(self.folder)[-1:]:
            self._check_processes(newest)
            self.accelerator.load_state(str(newest))
            _load_random_states(newest / f"random_states_{self.accelerator.process_index}.pkl")

    def _check_processes(self, checkpoint: Path) -> None:
        saved, now = len(list(checkpoint.glob("random_states_*"))), self.accelerator.num_processes
        if saved != now:
            raise UserError(
                f"{checkpoint} was written by {saved} process(es) and cannot be resumed by {now}; "
                f"launch {saved} process(es)."
            )


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("epoch-*"))


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
        if not (folder / "best").exists():
            raise ValueError(f"{folder} holds no validated checkpoint yet, so none is the best.")
        return (folder / "best").resolve()
    named = {path.name: path for path in complete}
    if name not in named:
        raise unknown("checkpoint", name, ["last", "best", *named])
    return named[name]


def load_backbone(model: LocalModel, checkpoint: Path) -> None:
    """Load the backbone's weights from a checkpoint, and leave the auxiliaries there."""
    below = f"{_BACKBONE}."
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if name.startswith(below)]  # noqa: SIM118
        tensors = {name.removeprefix(below): file.get_tensor(name) for name in names}
    model.backbone.load_state_dict(tensors)


def load_average(model: LocalModel, checkpoint: Path) -> None:
    """Load the moving average of the backbone's weights (``--model-ema``) from a checkpoint.

    Raises:
        ValueError: If the run kept none.
    """
    path = checkpoint / "custom_checkpoint_1.pkl"  # Accelerate's name: registered after Progress
    if not path.exists():
        raise ValueError(f"{checkpoint} has no moving average; train with --model-ema for one.")
    model.backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def _load_random_states(path: Path) -> None:
    """Set the random states that Accelerate saved; its own load only logs where it fails."""
    states = torch.load(path, map_location="cpu", weights_only=False)
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["torch_cuda_manual_seed"])
