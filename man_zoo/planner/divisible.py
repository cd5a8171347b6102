"""Whether a batch in slices trains as the whole one does."""

from ..micro_batches import normalises_batches
from ..spec import END_TO_END
from .cost import CostModel


def divisible(model: CostModel) -> bool:
    """Whether a batch in slices is the same training: its images meet nowhere."""
    auxiliaries = [] if model.spec.method == END_TO_END else [model.auxiliary(0, (0, 2))]
    return not (
        any(map(normalises_batches, (model.backbone, model.head, *auxiliaries)))
        or any(auxiliary.compares for auxiliary in auxiliaries)
    )
