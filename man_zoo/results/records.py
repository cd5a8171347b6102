"""Results of runs as JSON lines: small enough for a repository, and all that a table needs."""

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..arithmetic import flop_counter
from ..benchmark import live_cost
from ..console import disk_errors, user_errors, write_text
from ..local_model import LocalModel
from ..meter import fake
from ..planner import Setting
from ..runs.config import read_args, settings
from ..runs.folder import SUMMARY, load_log
from ..runs.metadata import load_metadata
from ..runs.model import create_model
from ..runs.untrusted import read_json
from ..tasks import TASKS, Features

_OF_AN_EPOCH = ("epoch", "lr", "seconds", "images_per_second", "val_loss")


def result_of(run: Path, name: str) -> dict[str, Any]:
    """One line: what a finished run was, did and cost.

    Args:
        run: Its folder.
        name: What tables call it, whatever its seed.

    Returns:
        ``name``, ``seed``, ``model``, ``settings`` (the flags that were set),
        ``data``, ``machine``, ``commit``, ``epochs`` (a record each: losses ``(K,)``, seconds,
        scores where measured), ``blocks`` and ``exits`` (name and main score in percent of each),
        ``exit_flops`` (of one image from the input to each), the task's scores after the last
        epoch, e.g. ``top1`` and ``top5``, those of classes by their names, ``seconds`` of training,
        and of one step ``peak_gib`` (live tensors) and ``flops_per_image``.

    Raises:
        UserError: If there is no such run, or it is not whole.
    """
    args, metadata = read_args(run), load_metadata(run)
    data = metadata.data
    summary = read_json(run / SUMMARY)
    records = load_log(run)
    with user_errors(KeyError, TypeError, about=f"{run} is damaged"):
        scores = TASKS[data.task].percent
        ended = {key: summary[key] for key in ("model", *scores, "blocks", "exits")}
        of_classes = {
            key: dict(zip(data.names, values, strict=True))
            for key, values in summary.items()
            if isinstance(values, list) and key not in (*ended, "losses")
        }
        seconds = sum(record["seconds"] for record in records)
    model = create_model(args, data, pretrained=False)
    return {
        "name": name,
        "seed": args.seed,
        "model": ended.pop("model"),
        "settings": {key: value for key, value in settings(args).items() if value is not None},
        "data": {
            **{key: getattr(data, key) for key in ("name", "train_count", "val_count")},
            "test_count": summary["count"],
        },
        "machine": metadata.machine,
        "commit": metadata.commit,
        "epochs": [_epoch(record, scores) for record in records],
        **ended,
        **of_classes,
        "seconds": seconds,
        **step_cost(model, args),
        "exit_flops": exit_flops(model, data.input_size),
    }


def _epoch(record: dict[str, Any], scores: Iterable[str]) -> dict[str, Any]:
    losses = [round(value, 5) for key, value in record.items() if key.startswith("loss_block")]
    keys = (*_OF_AN_EPOCH, *(f"val_{score}" for score in scores))
    return {key: record[key] for key in keys if key in record} | {"losses": losses}


def step_cost(model: LocalModel, args: Namespace) -> dict[str, float]:
    """``peak_gib`` and ``flops_per_image`` of a run's training step, by :mod:`man_zoo.meter`.

    On the CPU with SGD, whatever the run's optimizer, one update a batch and no weight EMA.
    """
    setting = Setting(
        args.batch_size,
        precision=args.mixed_precision or "no",
        device="cpu",
        channels_last=args.channels_last,
        micro_batches=args.micro_batches,
    )
    cost = live_cost(model.train(), setting)
    return {"peak_gib": cost.peak_gib, "flops_per_image": cost.flops / args.batch_size}


def exit_flops(model: LocalModel, input_size: tuple[int, int, int]) -> list[int | None]:
    """Arithmetic of one image ``(C, H, W)`` up to every exit ``(K,)``, the exit's own included.

    ``None`` where a block has no exit.
    """
    found: list[int | None] = []
    before, has_exit = 0, [*(auxiliary.classifies for auxiliary in model.auxiliaries), True]
    with fake(model) as model, torch.no_grad():
        model.eval()
        features: Features = torch.empty(1, *input_size)
        for block, exits in zip(model.blocks, has_exit, strict=True):
            with flop_counter() as units:
                features = block.run_units(features)
            before += units.get_total_flops()
            with flop_counter() as own:
                if exits:
                    block.classify(features)
            found.append(before + own.get_total_flops() if exits else None)
    return found


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none if there is no such file.

    Raises:
        UserError: If it is another kind of file.
    """
    if not path.exists():
        return []
    with disk_errors(path), user_errors(ValueError, RecursionError, about=f"{path} is no results"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if not (isinstance(line, dict) and {"name", "seed"} <= line.keys()):
                raise ValueError("a line has no name and seed.")
    return lines


def add_result(path: Path, result: dict[str, Any]) -> None:
    """Put a line into a results file, in place of one of the same name and seed."""
    lines = {(line["name"], line["seed"]): line for line in read_results(path)}
    lines[result["name"], result["seed"]] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines.values()))
