"""Checkpoints of a run: one folder an epoch, complete or not there; ``best`` points at one."""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.other import load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..console import UserError, write_json
from ..local_model import LocalModel
from ..runs.checkpoints import AVERAGE, BEST, WEIGHTS, checkpoint_name, list_checkpoints

_PROGRESS = "progress.json"


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

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    def load(self, path: Path) -> None:
        vars(self).update(json.loads(path.read_text()))


class Checkpoints:
    """Saves and restores a run through Accelerate.

    Accelerate keeps optimizers, random states and the gradient scaler; the weights of all blocks go
    into one file, the LocalModel's own state_dict, and progress and weight EMA into files of their
    own. Nothing is registered with Accelerate, which would unpickle it, and a run that is passed on
    could bring code along; what it loads by itself is tensors and numbers only.

    Args:
        accelerator: With the blocks and their optimizers prepared.
        model: The model that the blocks are parts of.
        average: The moving average of the backbone, if one is kept.
        progress: How far the run is.
        folder: The run's ``checkpoints`` folder.
        keep: How many of the newest to keep beside the best.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: LocalModel,
        average: nn.Module | None,
        progress: Progress,
        folder: Path,
        keep: int,
    ) -> None:
        self.accelerator, self.progress, self.folder, self.keep = (
            accelerator,
            progress,
            folder,
            keep,
        )
        self.modules: dict[str, nn.Module] = {WEIGHTS: model}
        if average is not None:
            self.modules[AVERAGE] = average
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            for name, module in self.modules.items():
                _save(module.state_dict(), Path(folder) / name)
            self.progress.save(Path(folder) / _PROGRESS)

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        for name, module in self.modules.items():
            module.load_state_dict(load_file(Path(folder) / name))
        self.progress.load(Path(folder) / _PROGRESS)

    def save(self) -> None:
        """Write the checkpoint of a finished epoch; a run killed meanwhile still has the last."""
        unfinished = self.folder / ".unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            unfinished.rename(self.folder / checkpoint_name(self.progress.epoch))
            self._tidy()

    def _tidy(self) -> None:
        """Let ``best`` point at the best epoch, and drop what need not be kept.

        All of it every time: a run killed in here leaves nothing that the next time misses.
        """
        best = checkpoint_name(self.progress.best_epoch)
        if self.progress.best_epoch:
            link = self.folder / f".{BEST}"
            link.unlink(missing_ok=True)
            link.symlink_to(best)
            os.replace(link, self.folder / BEST)
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


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _load_random_states(path: Path) -> None:
    """Set the random states that Accelerate saved; its own load only logs where it fails."""
    states = load(path, map_location="cpu")
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["torch_cuda_manual_seed"])
