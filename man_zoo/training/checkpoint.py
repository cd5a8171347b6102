"""Checkpoints of a run: one folder an epoch, complete or not there; ``best`` points at one.

A run that is stopped in an epoch leaves one more, from which it goes on as if nothing had happened.
"""

import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..console import UserError, disk_errors, user_errors, write_json
from ..local_model import LocalModel
from ..parallel.agree import agree
from ..parallel.places import Places
from ..runs.checkpoints import (
    AVERAGE,
    WEIGHTS,
    checkpoint_name,
    list_all_checkpoints,
    list_checkpoints,
    position,
)
from ..runs.checksums import Damaged, compare_checksums, write_checksums
from ..runs.folder import BEST
from ..runs.untrusted import check_files, read_json, read_pickle
from .parts import join_parts, load_part, save_part
from .sharded_checkpoint import load_sharded, save_sharded
from .so_far import EpochSoFar

_PROGRESS = "progress.json"


@dataclass
class Progress:
    """How far a run is: saved in every checkpoint.

    Args:
        epoch: Epochs finished.
        best_epoch: The epoch of the best validation score.
        best_score: That score: the task's main one.
        losses: Mean local losses ``(K,)`` of the last epoch.
        batches: Batches of the next epoch that are done; more than none where the run was stopped.
        seconds: Of training, in all its starts.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0
    losses: list[float] = field(default_factory=list)
    batches: int = 0
    seconds: float = 0.0

    def advance(self, losses: list[float], score: float | None, seconds: float) -> None:
        """Count an epoch that ended with these losses and this score, if it was validated."""
        self.seconds += seconds
        self.epoch, self.losses, self.batches = self.epoch + 1, losses, 0
        if score is not None and score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    def load(self, path: Path) -> None:
        values = read_json(path)
        if "best_top1" in values:  # as versions that knew classification alone wrote it
            values["best_score"] = values.pop("best_top1")
        vars(self).update(vars(Progress(**values)))


class Checkpoints:
    """Saves and restores a run through Accelerate.

    Accelerate keeps the random states; the weights of all blocks go into one file, the LocalModel's
    own state_dict, and the weight EMA, the state of each block's training and progress into files
    of their own. Nothing is registered with Accelerate, which would unpickle it, and a run that is
    passed on could bring code along; what it loads by itself is tensors and numbers only.

    Args:
        accelerator: For random states, and for waiting.
        places: This process's place among the others.
        model: The model that the blocks are parts of.
        average: The moving average of the network, if one is kept.
        states: What else has a state, e.g. optimizers, by the names of their files.
        progress: How far the run is.
        so_far: What each process alone knows of the epoch that is running.
        folder: The run's ``checkpoints`` folder.
        keep: How many of the newest to keep beside the best.
        sharded: Whether each process writes its share of the tensors, for any number to read.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        places: Places,
        model: LocalModel,
        average: nn.Module | None,
        states: Mapping[str, Any],
        progress: Progress,
        so_far: EpochSoFar,
        folder: Path,
        keep: int,
        *,
        sharded: bool = False,
    ) -> None:
        self.accelerator, self.progress, self.folder, self.keep = (
            accelerator,
            progress,
            folder,
            keep,
        )
        self.places, self.states, self.so_far = places, states, so_far
        self.sharded = sharded
        self._last = ""
        self.modules: dict[str, nn.Module] = {WEIGHTS: model}
        if average is not None:
            self.modules[AVERAGE] = average
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        weights.clear()
        so_far = self.so_far.state_dict() if self.progress.batches else None
        if self.sharded:
            is_main = self.accelerator.is_main_process
            save_sharded(self.modules, self.states, Path(folder), is_main=is_main)
        elif self.places.data_index == 0:  # all shares have the same
            for name, module in self.modules.items():
                save_part(module, Path(folder) / name, self.places.block_index)
            for name, state in self.states.items():
                torch.save(state.state_dict(), Path(folder) / name)
        if self.places.is_first and so_far is not None:
            torch.save(so_far, self._of_share(folder, "so_far"))
        if self.accelerator.is_main_process:
            self.progress.save(Path(folder) / _PROGRESS)

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        if self.sharded:
            load_sharded(self.modules, self.states, Path(folder))
        else:
            for name, module in self.modules.items():
                load_part(module, Path(folder) / name)
            for name, state in self.states.items():
                state.load_state_dict(read_pickle(Path(folder) / name))
        self.progress.load(Path(folder) / _PROGRESS)
        if self.progress.batches:
            self.so_far.load_state_dict(read_pickle(self._of_share(folder, "so_far")))

    def _of_share(self, folder: Path | str, name: str) -> Path:
        return Path(folder) / f"{name}_{self.places.data_index}.pkl"

    def save(self) -> None:
        """Write a checkpoint of where the run is; killed meanwhile, it still has the last."""
        if self._name == self._last:  # stopped again, in the validation of an epoch
            return
        unfinished = self.folder / ".unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with disk_errors(unfinished):
                self.accelerator.save_state(str(unfinished))
                if not self.places.is_first:  # its random numbers are no one's
                    _random_states(unfinished, self.accelerator.process_index).unlink()
                self.accelerator.wait_for_everyone()
                if self.accelerator.is_main_process:
                    for name in () if self.sharded else self.modules:
                        join_parts(unfinished / name)
                    write_checksums(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if self.accelerator.is_main_process:
            unfinished.rename(self.folder / self._name)
            self.tidy()
        self._last = self._name

    @property
    def _name(self) -> str:
        return checkpoint_name(self.progress.epoch, self.progress.batches)

    def tidy(self) -> None:
        """Let ``best`` point at the best epoch, and drop what need not be kept.

        Checkpoints beyond where the run is are damaged ones that it went back behind when resumed;
        one of an epoch in which it was stopped before is replaced by any later.
        All of it every time: a run killed in here leaves nothing that the next time misses.
        """
        best = checkpoint_name(self.progress.best_epoch)
        if self.progress.best_epoch:
            link = self.folder / f".{BEST}"
            link.unlink(missing_ok=True)
            link.symlink_to(best)
            os.replace(link, self.folder / BEST)
        here = self.folder / self._name
        epochs = [
            path for path in list_checkpoints(self.folder) if position(path) <= position(here)
        ]
        kept = [*epochs[-self.keep :], here, self.folder / best]
        for path in list_all_checkpoints(self.folder):
            if path not in kept:
                shutil.rmtree(path)

    def resume(self) -> None:
        """Load the newest whole checkpoint; nothing if the run was stopped before its first.

        Raises:
            UserError: If none is whole, or it is not of this run or of another number of processes.
        """
        checkpoint = agree(self._newest_whole)
        if checkpoint is None:
            return
        with user_errors(Exception, about=f"{checkpoint} does not fit this run"):
            self.accelerator.load_state(str(checkpoint))
            if _shares(checkpoint) == self.places.data_count:
                _set_random_states(read_pickle(_random_states(checkpoint, self.places.data_index)))
        self._last = self._name

    def _newest_whole(self) -> Path | None:
        """The main process looks for it, and says where it had to go back."""
        found: UserError | None = None
        for checkpoint in reversed(list_all_checkpoints(self.folder)):
            try:
                compare_checksums(checkpoint)
            except Damaged as damage:
                found = found or damage
                continue
            self._check_processes(checkpoint)
            check_files(checkpoint)
            if found:
                print(f"{_clause(found)}; going on from {checkpoint.name}.")
            return checkpoint
        if found:
            raise UserError(f"{_clause(found)}, and no checkpoint is whole; start the run anew.")
        return None

    def _check_processes(self, checkpoint: Path) -> None:
        saved, now = _shares(checkpoint), self.places.data_count
        _, batches = position(checkpoint)
        if saved != now and (batches or not self.sharded):
            each = self.places.block_count
            raise UserError(
                f"{checkpoint} was written by {saved} process(es) and cannot be resumed by {now}; "
                f"launch {saved} process(es)."
                if each == 1
                else f"{checkpoint} is of {saved} share(s) of the data and cannot be resumed by "
                f"{now}; launch {saved * each} process(es) for --block-parallel {each}."
            )


def _random_states(folder: Path, share: int) -> Path:
    """Accelerate's file. The first processes of all, by rank, are those that read data."""
    return folder / f"random_states_{share}.pkl"


def _shares(checkpoint: Path) -> int:
    """Of how many shares of the data it is."""
    return len(list(checkpoint.glob("random_states_*")))


def _clause(error: UserError) -> str:
    """Its sentence, for another to go on with."""
    return str(error).rstrip(".")


def _set_random_states(states: dict[str, Any]) -> None:
    """Set the random states that Accelerate saved; its own load only logs where it fails."""
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    # Of those GPUs that are here as well; blocks draw by seed and update, whatever these are.
    saved = states.get("torch_cuda_manual_seed", [])
    for device, state in zip(range(torch.cuda.device_count()), saved, strict=False):
        torch.cuda.set_rng_state(state, device)
