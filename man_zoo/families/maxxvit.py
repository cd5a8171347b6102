"""MaxViT, CoAtNet and their kin."""

from functools import partial

from timm.models.maxxvit import MaxxVit

from .units import Units, fresh, head_part, make_units, staged_blocks


def maxxvit_units(backbone: MaxxVit) -> Units:
    """Convolution, attention or mixed blocks."""
    return make_units(
        backbone.stem,
        staged_blocks(backbone, "stages"),
        head_part(backbone, "head", after=("norm",)),
        # The blocks know their own schemes; this is the default one.
        init=partial(fresh, draw=partial(backbone._init_weights, scheme="vit_eff")),
    )
