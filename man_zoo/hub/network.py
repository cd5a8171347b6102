"""The weights of a network as files: the backbone's as timm's, a decoder's beside them."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ..console import whole
from ..local_model import LocalModel
from ..weights import DECODER, WEIGHTS


def save_network(model: LocalModel, folder: Path, header: dict[str, Any]) -> None:
    """Write ``model.safetensors`` and, for a dense task, ``decoder.safetensors``.

    Both load without man_zoo: the first into a plain timm model, the second into torchvision's
    modules. Auxiliaries are left out.

    Args:
        model: Whose weights.
        folder: Where to.
        header: What the files say of themselves. Under one key, because safetensors writes several
            in any order, and an export of the same weights should be the same file.
    """
    _save(model.backbone, folder / WEIGHTS, header)
    if model.decoder is not None:
        _save(model.decoder, folder / DECODER, header)


def _save(module: nn.Module, path: Path, header: dict[str, Any]) -> None:
    with whole(path) as unfinished:
        save_file(module.state_dict(), unfinished, {"man_zoo": json.dumps(header)})
