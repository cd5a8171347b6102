"""What an epoch says of images that were left out (``--skip-bad-images``)."""

from collections.abc import Iterable

from accelerate.utils import gather_object

from .bar import TrainingBar

_NAMED = 3  # a line has the first so many


def count_bad_images(
    training: Iterable[str], validation: Iterable[str], bar: TrainingBar
) -> dict[str, int]:
    """``bad_images`` and ``val_bad_images`` over all processes; a line where there are any.

    Args:
        training: What this process was told of its training images, a sentence on each.
        validation: The same of images to validate on.
        bar: What says it.
    """
    counts = {}
    for key, of_process in (("bad_images", training), ("val_bad_images", validation)):
        # A set: of a data set in memory, every process has decoded all.
        bad = sorted(set(gather_object(sorted(of_process))))
        counts[key] = len(bad)
        if bad:
            kind = "validation" if key.startswith("val") else "training"
            first = "; ".join(sentence.rstrip(".") for sentence in bad[:_NAMED])
            more = "; ..." if len(bad) > _NAMED else "."
            bar.say(f"{len(bad)} {kind} image(s) left out: {first}{more}")
    return counts
