"""Where a network is cut: published cuts, cuts by name, and an even split for any other K.

A cut is the index of the unit after which a local block ends; block K ends with the head.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from .messages import unknown

_RESNET110_K32 = (
    "1.1 1.2 1.4 1.5 1.7 1.9 1.11 1.13 1.14 1.16 1.17 2.1 2.2 2.4 2.5 2.7 2.9 2.11 2.13 2.14 2.16 "
    "2.17 3.1 3.3 3.4 3.6 3.7 3.9 3.11 3.13 3.15"
)

# "s.i" is unit i of stage s (InfoPro, ICLR 2021; MAN, arXiv 2407.05623). The K at which every unit
# is a block (resnet32 K = 16, resnet110 K = 55) and ViT's every third unit are even splits.
PUBLISHED_CUTS: dict[tuple[str, int], str] = {
    ("resnet32", 8): "1.0 1.2 1.4 2.1 2.3 3.0 3.2",
    ("resnet110", 2): "1.14",
    ("resnet110", 3): "1.9 2.2",
    ("resnet110", 4): "1.6 1.14 2.8",
    ("resnet110", 8): "1.4 1.11 2.0 2.7 2.14 3.3 3.10",
    ("resnet110", 16): "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13",
    ("resnet110", 32): _RESNET110_K32,
    ("resnet101", 2): "2.0",
    ("resnet101", 4): "2.2 3.8 3.16",
    ("resnext101_32x8d", 2): "2.0",
    ("resnext101_32x8d", 4): "2.2 3.8 3.16",
    ("resnet152", 2): "2.5",
    ("resnet152", 4): "2.6 3.13 3.25",
}

# By task: DeepLabV3 at 512x1024 and output stride 8, in InfoPro's release; RetinaNet in MAN++'s
# paper, a block a stage.
_PUBLISHED_DENSE_CUTS: dict[str, dict[tuple[str, int], str]] = {
    "segmentation": {("resnet101", 2): "3.12"},
    "detection": {
        ("resnet50", 4): "1.2 2.3 3.5",
        ("resnet101", 4): "1.2 2.3 3.22",
        ("resnet152", 4): "1.2 2.7 3.35",
    },
}
# What stands on the network and behind its cuts stands on stages there: a cut at a stage's end lets
# every auxiliary serve the levels of the next stage.
_BY_STAGE = ("detection",)


def published_cuts(task: str = "classification") -> Mapping[tuple[str, int], str]:
    """The cuts that results of a task were published with, by backbone and K."""
    return PUBLISHED_CUTS if task == "classification" else _PUBLISHED_DENSE_CUTS.get(task, {})


def choose_cuts(
    backbone: str,
    names: Sequence[str],
    k: int,
    cuts: str | Sequence[str] | None = None,
    task: str = "classification",
) -> tuple[int, ...]:
    """The K - 1 units after which blocks 1 .. K-1 end.

    Args:
        backbone: timm name of the backbone, for its published cuts.
        names: Names of its units, the stem first.
        k: Number of local blocks.
        cuts: ``"published"``, ``"stages"``, ``"even"``, unit names (a sequence, or one string with
            spaces or commas between them), or ``None``: published where there are such; for
            detection a block a stage where K is the number of stages; else even.
        task: What the network is for: where it is cut depends on that.

    Raises:
        ValueError: For an impossible K, a cut that does not exist, or K - 1 cuts that are not.
    """
    if not 1 <= k <= len(names):
        raise ValueError(
            f"k={k} is impossible for {backbone}: it has {len(names)} units, so k is from 1 to "
            f"{len(names)}; the nearest is {min(max(k, 1), len(names))}."
        )
    every = published_cuts(task)
    published = every.get((backbone, k))
    if cuts is None:
        staged = task in _BY_STAGE and k == len(_stage_ends(names)) + 1
        cuts = "published" if published else "stages" if staged else "even"
    if cuts == "published":
        if published is None:
            known = sorted(known_k for name, known_k in every if name == backbone)
            raise ValueError(
                f"No published cuts for {backbone} with k={k}; "
                + (f"there are for k in {known}." if known else "use cuts='even' or unit names.")
            )
        return tuple(names.index(f"layer{cut}") for cut in published.split())
    if cuts == "even":
        return even_cuts(len(names), k)
    if cuts == "stages":
        return _stage_cuts(backbone, names, k)
    return _named_cuts(names, k, cuts.replace(",", " ").split() if isinstance(cuts, str) else cuts)


def block_ranges(cuts: Sequence[int], units: int) -> list[range]:
    """Where blocks start and end: of each, the indices of its units.

    Args:
        cuts: Index of the last unit of blocks 1 .. K-1.
        units: Number of units of the network.
    """
    edges = [0, *(cut + 1 for cut in cuts), units]
    return [range(start, end) for start, end in pairwise(edges)]


def even_cuts(units: int, k: int) -> tuple[int, ...]:
    """Blocks of as equal a number of units as can be; the stem rides with the first unit.

    Only K = number of units gives the stem a block of its own, as published.
    """
    if k == units:
        return tuple(range(k - 1))
    return tuple(round((units - 1) * j / k) for j in range(1, k))


def _stage_cuts(backbone: str, names: Sequence[str], k: int) -> tuple[int, ...]:
    ends = _stage_ends(names)
    if len(ends) != k - 1:
        raise ValueError(
            f"cuts='stages' is a block a stage, and {backbone} has {len(ends) + 1}; expected "
            f"k={len(ends) + 1}, or cuts='even'."
        )
    return ends


def _stage_ends(names: Sequence[str]) -> tuple[int, ...]:
    """Last units of all stages but the last; names say which stage a unit is of, after the stem."""
    stages = [name.rpartition(".")[0] for name in names[1:]]
    return tuple(i for i, (one, next_) in enumerate(pairwise(stages), 1) if one != next_)


def _named_cuts(names: Sequence[str], k: int, cuts: Sequence[str]) -> tuple[int, ...]:
    for cut in cuts:
        if cut not in names[:-1]:
            raise unknown("cut", cut, names[:-1])
    indices = tuple(sorted({names.index(cut) for cut in cuts}))
    if len(indices) != k - 1:
        raise ValueError(
            f"k={k} takes {k - 1} different cuts, but {len(indices)} were given: "
            f"{', '.join(cuts)}; use k={len(indices) + 1} or change the cuts."
        )
    return indices
