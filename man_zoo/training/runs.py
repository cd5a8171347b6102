"""A run folder as the model that was trained in it."""

from pathlib import Path

from safetensors.torch import load_file

from ..local_model import LocalModel
from .checkpoint import WEIGHTS, find_checkpoint, load_backbone
from .config import read_args
from .facts import load_facts
from .setup import create_model


def load_run(run: Path, checkpoint: str = "last", *, auxiliaries: bool = True) -> LocalModel:
    """The model of a run with the weights of a checkpoint.

    Args:
        run: A run folder of the training recipe.
        checkpoint: As :func:`~man_zoo.training.checkpoint.find_checkpoint` takes it.
        auxiliaries: Whether to build the auxiliaries and load their weights.

    Raises:
        UserError: If there is no run.
        ValueError: If there is no such checkpoint.
    """
    data, _ = load_facts(run)
    source = find_checkpoint(run / "checkpoints", checkpoint)
    model = create_model(read_args(run), data, auxiliaries=auxiliaries, pretrained=False)
    if auxiliaries:
        model.load_state_dict(load_file(source / WEIGHTS))
    else:
        load_backbone(model, source)
    return model
