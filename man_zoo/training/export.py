"""Export: a trained backbone in timm's hub format, for ``timm.create_model("local-dir:...")``."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.models import save_for_hf
from torch import nn


def export(backbone: nn.Module, folder: Path, label_names: Sequence[str] = ()) -> None:
    """Write ``model.safetensors`` and ``config.json``, both or neither.

    Args:
        backbone: A timm model.
        folder: Written anew if it is there.
        label_names: Names of the classes, in order, for ``config.json``.
    """
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    # timm drops names that do not match the number of classes of the cfg that it began with.
    labels = {"num_classes": backbone.num_classes, "label_names": list(label_names)}
    save_for_hf(
        # safetensors takes contiguous tensors only.
        copy.deepcopy(backbone).to(memory_format=torch.contiguous_format),
        str(unfinished),
        model_config={"pretrained_cfg": labels} if label_names else None,
        safe_serialization=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
