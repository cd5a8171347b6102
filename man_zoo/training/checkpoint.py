"""Checkpoints of a run: one folder an epoch, complete or not there; ``best`` points at one."""

import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from ..local_model import LocalModel

WEIGHTS = "model.safetensors"


class Progress:
    """How far a run is: saved in every checkpoint.

    Args:
        epoch: Epochs finished.
        best_epoch: The epoch of the best validation accuracy.
        best_top1: That accuracy, in percent.
    """

    def __init__(self, epoch: int = 0, best_epoch: int = 0, best_top1: float = -1.0) -> None:
        self.epoch, self.best_epoch, self.best_top1 = epoch, best_epoch, best_top1

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

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

    def __init__(self, accelerator: Accelerator, model: LocalModel, folder: Path, keep: int) -> None:
        self.accelerator, self.model, self.folder, self.keep = accelerator, model, folder, keep
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            save_weights(self.model, Path(folder) / WEIGHTS)

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        self.model.load_state_dict(load_file(Path(folder) / WEIGHTS))

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of a finished epoch; a run killed meanwhile still has the last."""
        target = self.folder / f"epoch-{progress.epoch:04d}"
        unfinished = self.folder / f".unfinished-{target.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            if progress.best_epoch == progress.epoch:
                _point(self.folder / "best", target.name)
            self._prune(progress.best_epoch)

    def _prune(self, best_epoch: int) -> None:
        for old in list_checkpoints(self.folder)[: -self.keep]:
            if old.name != f"epoch-{best_epoch:04d}":
                shutil.rmtree(old)

    def resume(self) -> None:
        """Load the newest complete checkpoint.

        Raises:
            FileNotFoundError: If the run has none.
        """
        complete = list_checkpoints(self.folder)
        if not complete:
            raise FileNotFoundError(f"{self.folder.parent} has no checkpoint to resume from.")
        self.accelerator.load_state(str(complete[-1]))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("epoch-*"))


def save_weights(model: LocalModel, path: Path) -> None:
    """The whole model, auxiliaries included, as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def _point(link: Path, name: str) -> None:
    """Make a symbolic link, or move it, in one step."""
    new = link.with_name(f".{link.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    os.replace(new, link)
