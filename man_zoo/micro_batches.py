"""Micro-batches: a batch in slices, and where slices are not the same as the whole.

A block can run its batch in slices because losses are means over images. That holds where every
image is looked at by itself; where images of a batch meet, slices are another training.
"""

from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

GHOST = (
    "Ghost batch norm: BatchNorm takes its statistics of each micro-batch by itself, so this is "
    "not the training of whole batches."
)
_OVER_THE_BATCH = (_BatchNorm, EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2)


def normalises_batches(module: nn.Module) -> bool:
    """Whether a norm in it averages over the images of a batch."""
    return any(isinstance(layer, _OVER_THE_BATCH) for layer in module.modules())


def check_micro_batches(count: int, compares: bool, method: str) -> None:
    """Refuse slices of a batch whose images a local loss compares with each other.

    Args:
        count: Slices of a batch.
        compares: Whether the loss does.
        method: Whose loss it is.

    Raises:
        ValueError: For such a loss, or fewer slices than one.
    """
    if count < 1:
        raise ValueError(f"micro_batches={count} is impossible; expected 1 or more.")
    if compares and count > 1:
        raise ValueError(
            f"This loss of {method} compares the images of a batch with each other, which "
            f"{count} micro-batches keep apart; expected micro_batches=1."
        )


def need_images(least: int, batch_size: int, count: int = 1) -> None:
    """Refuse slices of so few images that the network cannot be trained on them.

    Args:
        least: Images that a slice must have.
        batch_size: Of all slices.
        count: Slices.

    Raises:
        ValueError: If the smallest slice has fewer.
    """
    if batch_size // max(count, 1) < least and least > 1:
        slices = f" in {count} micro-batches" if count > 1 else ""
        raise ValueError(
            f"A batch of {batch_size}{slices} is too small: this decoder's batch norm takes "
            f"{least} images or more at a time; use a larger batch, or decoder='fpn'."
        )


def need_an_image_each(count: int, batch_size: int) -> None:
    """Raises ``ValueError`` for more slices than images, in the words of the flags."""
    if count > batch_size:
        raise ValueError(
            f"--micro-batches {count} is more than the {batch_size} images of a batch; expected at "
            "most that many."
        )
