"""Which square images a backbone takes, and how it is made to take them."""

from typing import Any

from .piece import without_data

# Pixels that a step of a network halves away, where it does not say how many.
_REDUCTION = 32


def side_step(backbone: Any) -> int:
    """Pixels between one image side and the next: what the last map is smaller by, or a patch."""
    stages = getattr(backbone, "feature_info", None)
    if not isinstance(stages, list) or not stages:
        return _REDUCTION
    return max(stage["reduction"] for stage in stages)


def with_image_side(backbone: Any, name: str, side: int) -> Any:
    """The backbone for square images of another side; a copy on meta where weights change.

    Args:
        backbone: A timm model; left as it is.
        name: Its timm name, for the message.
        side: In pixels.

    Raises:
        ValueError: For a backbone whose weights fit one image size only.
    """
    if hasattr(backbone, "set_input_size"):
        other = without_data(backbone, "meta")
        other.set_input_size(img_size=side)
        return other
    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    if cfg.get("fixed_input_size"):
        size = "x".join(map(str, cfg["input_size"][1:]))
        raise ValueError(f"{name} takes images of {size} pixels only; ask for the largest batch.")
    return backbone
