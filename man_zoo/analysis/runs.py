"""Runs side by side: their networks, and the depths at which all of them are looked at."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..console import UserError
from ..data import LoaderInfo
from ..families import Units, list_units
from ..local_model import LocalModel
from ..runs.checkpoints import find_checkpoint
from ..runs.config import read_args
from ..runs.folder import CHECKPOINTS
from ..runs.metadata import load_metadata
from ..runs.model import load_run
from ..spec import CLASSIFICATION


@dataclass(frozen=True)
class Run:
    """A trained network and what pictures call it.

    Args:
        label: Its name in tables and pictures.
        args: Flags that it was trained with.
        data: The data set that it was trained on.
        checkpoint: Name of the checkpoint that was loaded.
        model: The network with its auxiliaries, in evaluation mode.
        units: The units of its backbone.
    """

    label: str
    args: Namespace
    data: LoaderInfo
    checkpoint: str
    model: LocalModel
    units: Units

    @property
    def ends(self) -> tuple[int, ...]:
        """The last unit of each of its own blocks."""
        return (*self.model.cuts, len(self.units) - 1)


def load_runs(
    folders: Sequence[Path],
    device: torch.device,
    *,
    labels: Sequence[str] | None = None,
    checkpoint: str = "last",
) -> list[Run]:
    """The networks of run folders, on one device.

    Args:
        folders: Of runs of the training recipe.
        device: Where the networks are to be.
        labels: What to call them; name and seed by default.
        checkpoint: ``"last"``, ``"best"`` or the name of one that all runs have.

    Raises:
        UserError: If there is no such run, or none of a classifier, if runs differ in backbone or
            data, or if labels are not one for each run and all different.
        ValueError: If a run has no such checkpoint.
    """
    if labels is not None and len(labels) != len(folders):
        raise UserError(
            f"{len(labels)} --labels for {len(folders)} run(s); expected {len(folders)}."
        )
    runs = [_load(folder, device, checkpoint) for folder in folders]
    if labels is not None:
        runs = [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]
    _check_alike(runs)
    return runs


def _load(folder: Path, device: torch.device, checkpoint: str) -> Run:
    args, data = read_args(folder), load_metadata(folder).data
    if data.task != CLASSIFICATION:
        raise UserError(f"{folder} is a run of {data.task}; expected runs of classifiers.")
    model = load_run(folder, checkpoint).eval().to(device)
    return Run(
        label=f"{model.spec.name}, seed {args.seed}",
        args=args,
        data=data,
        checkpoint=find_checkpoint(folder / CHECKPOINTS, checkpoint).name,
        model=model,
        units=list_units(model.backbone),
    )


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for i, run in enumerate(runs[1:], 1):
        names = [other.model.spec.backbone for other in (first, run)]
        if names[0] != names[1]:
            raise UserError(
                f"{first.label} is a {names[0]} and {run.label} a {names[1]}; "
                "expected runs of one backbone."
            )
        if _task(run.data) != _task(first.data):
            raise UserError(
                f"{first.label} was trained on {first.data.name} and {run.label} on "
                f"{run.data.name}; expected one data set, normalised alike."
            )
        if run.label in [other.label for other in runs[:i]]:
            raise UserError(f"Two runs are called {run.label}; expected different --labels.")


def _task(data: LoaderInfo) -> tuple[object, ...]:
    return data.name, data.class_names, data.input_size, data.mean, data.std


def common_depths(runs: Sequence[Run]) -> tuple[int, ...]:
    """The units after which all runs are looked at: the block ends of the run with most blocks.

    Where every run is end to end, each unit is a depth. The last unit always is one.
    """
    finest = max((run.ends for run in runs), key=len)
    return finest if len(finest) > 1 else tuple(range(len(runs[0].units)))


def reference_run(runs: Sequence[Run]) -> Run:
    """The run that others are held against: the first end-to-end one, else the first."""
    return next((run for run in runs if len(run.ends) == 1), runs[0])


@torch.no_grad()
def read(
    run: Run, images: Tensor, depths: Sequence[int], reader: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What ``reader`` makes of the features at each depth, the units running one after another.

    Args:
        run: Whose network.
        images: Normalised images ``(B, C, H, W)``.
        depths: Units whose output is read, in order.
        reader: Takes features in the layout of ``run.units`` and returns a tensor of its own,
            because the unit that follows may change its input in place.
    """
    features, result = images, []
    for unit, module in enumerate(run.units.modules[: depths[-1] + 1]):
        features = module(features)
        if unit in depths:
            result.append(reader(features))
    return result
