"""Export: the trained backbone of a run as a folder in timm's hub format, with its model card."""

import json
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import save_for_hf

import man_zoo

from ..console import UserError, user_errors, whole_folder
from ..data import LoaderInfo
from ..local_model import LocalModel
from ..runs.checkpoints import epoch_of, find_checkpoint, load_average, load_network
from ..runs.config import command_line, config_hash, read_args
from ..runs.folder import CHECKPOINTS, EXPORT, SUMMARY, load_epoch
from ..runs.metadata import load_metadata
from ..runs.model import create_model
from ..runs.untrusted import read_json
from ..tasks import TASKS, keywords_of
from ..weights import CARD, CONFIG, check_title
from .card import load_lines, write_card
from .network import save_network

_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def export_run(
    run: Path,
    folder: Path | None = None,
    *,
    checkpoint: str = "last",
    ema: bool = False,
    tag: str | None = None,
    force: bool = False,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``model.safetensors``, ``config.json`` and ``README.md``, all or nothing.

    The weights are the backbone's alone; a decoder's are in ``decoder.safetensors``. What the zoo
    knows of them (name, tag, cuts, metrics) is under ``"man_zoo"`` in ``config.json``, where timm
    does not look.

    Args:
        run: A run folder of the training recipe.
        folder: What to write; ``export`` in the run by default.
        checkpoint: ``"last"``, ``"best"`` on the validation images, or a checkpoint's name.
        ema: Export the moving average of the weights.
        tag: What the weights are called after the model's name; by default after the data set.
        force: Replace a folder of an earlier export.
        summary: How the run ended, where it has not written that yet.

    Returns:
        The folder.

    Raises:
        UserError: If there is no such run or checkpoint, if it is damaged, if the folder is there
            already, and for a tag that is no word.
    """
    folder = folder or run / EXPORT
    _check_target(folder, force)
    args, recorded = read_args(run), load_metadata(run)
    data, tag = recorded.data, tag or default_tag(args)
    with user_errors():
        source = find_checkpoint(run / CHECKPOINTS, checkpoint)
        model = create_model(args, data, auxiliaries=False, pretrained=False)
        (load_average if ema else load_network)(model, source)
        check_title(model.spec.name, tag)
    record = load_epoch(run, epoch_of(source))
    keys, validation = (*model.task.percent, "loss"), f"{data.val_count} images"
    metrics = {key: record[f"{'ema_val' if ema else 'val'}_{key}"] for key in keys}
    ended = {} if ema or not args.val_holdout else summary or _summary_of(run)
    if ended and record["epoch"] == args.epochs:
        # Images that were held out have chosen; those of the test were looked at once, at the end.
        metrics, validation = {key: ended[key] for key in keys}, f"{ended['count']} test images"
    metadata = {
        "name": model.spec.name,
        "tag": tag,
        "task": model.task.name,
        "task_keywords": keywords_of(model.task),
        "method": model.spec.method,
        "k": model.spec.k,
        "cuts": [model.unit_names[cut] for cut in model.cuts],
        "metrics": metrics,
        "dataset": args.dataset,
        "data": f"{data.name}, {data.train_count} images",
        "validation": validation,
        "epoch": f"{record['epoch']} of {args.epochs}" + (", averaged weights" if ema else ""),
        "recipe": f"man-zoo train {command_line(args)}".rstrip(),
        "seconds": record["seconds"],
        "machine": recorded.machine,
        "version": man_zoo.__version__,
        "config_sha256": config_hash(args),
    }
    _write(model, data, metadata, folder)
    return folder


def _summary_of(run: Path) -> dict[str, Any]:
    """How a finished run ended; nothing of one that goes on."""
    return read_json(run / SUMMARY) if (run / SUMMARY).is_file() else {}


def _check_target(folder: Path, force: bool) -> None:
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; expected a folder, or none yet.")
    if not folder.exists():
        return
    if not force:
        raise UserError(f"{folder} is there already; --force replaces it.")
    if not _is_export(folder):
        raise UserError(f"{folder} is no exported folder, so it is not replaced.")


def _is_export(folder: Path) -> bool:
    try:
        return "man_zoo" in read_json(folder / CONFIG)
    except (UserError, TypeError):
        return False


def _write(model: LocalModel, data: LoaderInfo, metadata: dict[str, Any], folder: Path) -> None:
    backbone, num_classes = model.backbone, model.num_classes
    labels = list(data.class_names)
    if len(labels) != num_classes:
        labels = []  # --num-classes gave the network more classes than there are names
    with whole_folder(folder) as unfinished:
        save_for_hf(
            backbone,
            str(unfinished),
            # timm drops names that do not match the number of classes of the cfg that it began with.
            model_config={
                "pretrained_cfg": {
                    "tag": metadata["tag"],
                    "num_classes": backbone.num_classes,
                    **({"label_names": labels} if labels else {}),
                },
                "man_zoo": metadata,
            },
            safe_serialization=True,
            data_config={key: getattr(data, key) for key in _PREPROCESSING},
        )
        # The weights once more, because save_for_hf takes no metadata.
        header = {key: metadata[key] for key in ("version", "name", "tag", "config_sha256")}
        save_network(model, unfinished, header)
        write_card(
            unfinished / CARD,
            metadata,
            architecture=backbone.pretrained_cfg["architecture"],
            labels=labels,
        )


def usage(folder: Path) -> str:
    """Three lines of Python that load an exported folder."""
    config = json.loads((folder / CONFIG).read_text())
    dense = TASKS[config["man_zoo"]["task"]].dense
    return load_lines(config["architecture"], f"local-dir:{folder}", dense=dense)


def default_tag(args: Namespace) -> str:
    """The data set as a tag: ``cifar10``; a folder's own name."""
    folder = args.dataset in ("folder", "imagefolder", "tar")
    name = Path(args.data_dir).resolve().name if folder else args.dataset.split("/")[-1]
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "data"
