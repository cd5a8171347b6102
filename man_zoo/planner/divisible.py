"""Whether a batch in slices trains as the whole one does."""

from ..micro_batches import normalises_batches
from ..spec import END_TO_END
from .cost import CostModel


def divisible(model: CostModel) -> bool:
    """Whether a batch in slices is the same training: its images meet nowhere."""
    # The first and the last, which AugLocal makes deepest and shallowest.
    places = () if model.spec.method == END_TO_END else ((0, 2), (1, 2))
    auxiliaries = [model.auxiliary(0, place) for place in places]
    return not (
        any(map(normalises_batches, (model.backbone, model.head, *auxiliaries)))
        or any(auxiliary.compares for auxiliary in auxiliaries)
    )
