"""The classes of a data set: their names, in the order of the targets, and how many."""

from argparse import Namespace
from typing import Any

from .info import DatasetInfo


def class_index(dataset: Any) -> dict:
    """Class name to index, empty where the data set does not say; timm's tars name it otherwise."""
    reader = getattr(dataset, "reader", dataset)
    index = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    return dict(index or {})


def class_names(dataset: Any) -> tuple[str, ...]:
    """In the order of the targets, empty where the data set does not say."""
    if hasattr(dataset, "classes"):
        return tuple(map(str, dataset.classes))
    index = class_index(dataset)
    return tuple(str(name) for name in sorted(index, key=index.__getitem__))


def count_classes(args: Namespace, spec: DatasetInfo, names: tuple[str, ...]) -> int:
    """The data set's number of classes, or the larger one that ``--num-classes`` asks for.

    Raises:
        ValueError: If it is not known, or fewer are asked for.
    """
    own = spec.num_classes or len(names)
    if not (args.num_classes or own):
        raise ValueError(
            f"The number of classes of {args.dataset} is not known; expected --num-classes N."
        )
    if args.num_classes and args.num_classes < own:
        raise ValueError(
            f"--num-classes {args.num_classes} is fewer than the {own} classes of {spec.label}; "
            f"expected {own} or more."
        )
    return args.num_classes or own
