"""What a zoo name means: ``resnet32_man_dgl_k16`` and every keyword beside it, in one dataclass."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .auxiliary import METHODS, MomentumSettings
from .messages import unknown
from .tasks import Classification

OVERLAP = "overlap"
WRAPPERS = ("man", "manpp", OVERLAP)
END_TO_END = "e2e"
CLASSIFICATION = Classification.name
_SHARED_KEYWORDS = ("cuts", "head_norm", "recompute")
_MOMENTUM_KEYWORDS = tuple(f.name for f in fields(MomentumSettings) if f.name != "scale")

# Published settings that differ from the methods' own defaults (InfoPro and MAN papers).
_PUBLISHED_LAMBDAS: dict[tuple[str, str, int | None], dict[str, Any]] = {
    ("resnet32", "infopro", 16): {"lambda1": (5.0, 0.2), "lambda2": (0.05, 0.5)},
    ("resnet110", "infopro", 55): {"lambda1": (5.0, 0.5), "lambda2": (0.0, 1.0)},
    ("resnet32", "man_infopro", None): {"lambda1": (5.0, 0.0), "lambda2": (0.5, 0.0)},
    ("resnet110", "man_infopro", None): {"lambda1": (5.0, 0.0), "lambda2": (0.5, 0.0)},
    ("resnet101", "infopro", None): {"lambda1": (5.0, 5.0), "lambda2": (0.75, 0.75)},
    ("resnet101", "man_infopro", None): {"lambda1": (5.0, 5.0), "lambda2": (0.75, 0.75)},
    ("resnet152", "infopro", None): {"lambda1": (5.0, 5.0), "lambda2": (1.0, 1.0)},
    ("resnet152", "man_infopro", None): {"lambda1": (5.0, 5.0), "lambda2": (1.0, 1.0)},
}

_PUBLISHED_DENSE: dict[tuple[str, str], dict[str, Any]] = {
    ("segmentation", "infopro"): {"lambda1": (1.5, 1.5), "lambda2": (1.0, 1.0)},
}
# A dense task has one small decoder behind a cut.
_CLASSIFIER_KEYWORDS = ("head", "width", "classifier")


def list_methods() -> list[str]:
    """Every method name: end to end, the base methods, and MAN, MAN++ and overlap over each."""
    wrapped = [f"{wrapper}_{base}" for wrapper in WRAPPERS for base in METHODS]
    return [END_TO_END, *METHODS, *wrapped]


@dataclass(frozen=True)
class LocalSpec:
    """A backbone, a method, K, the cuts, and the settings of the auxiliaries.

    Args:
        backbone: timm name.
        method: ``"e2e"``, a base method, or ``man_``, ``manpp_`` or ``overlap_`` and a base method.
        k: Number of local blocks.
        cuts: As :func:`man_zoo.split.choose_cuts` takes them.
        head_settings: Keywords of the base method's head.
        momentum: MAN's settings; ``None`` without it.
        head_norm: ``"batch"``, or ``"group"`` for heads that do not look across the batch.
        recompute: As :func:`man_zoo.recompute.choose_recompute` takes it.

    Raises:
        ValueError: For an unknown method or head norm.
    """

    backbone: str
    method: str
    k: int
    cuts: str | Sequence[str] | None = None
    head_settings: Mapping[str, Any] = field(default_factory=dict)
    momentum: MomentumSettings | None = None
    head_norm: str = "batch"
    recompute: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.head_norm not in ("batch", "group"):
            raise unknown("head_norm", self.head_norm, ("batch", "group"))
        if self.method == END_TO_END and self.k != 1:
            raise ValueError(f"End to end is one block: method='e2e' takes k=1, not k={self.k}.")

    @property
    def name(self) -> str:
        """The zoo name, ``{backbone}_{method}_k{K}``."""
        return f"{self.backbone}_{self.method}_k{self.k}"

    @property
    def base(self) -> str:
        """The base method under MAN or overlap."""
        return base_method(self.method)

    @property
    def overlaps(self) -> bool:
        """Whether auxiliaries begin with the next block's first unit itself."""
        return _wrapper(self.method) == OVERLAP

    @property
    def units_ahead(self) -> int:
        """How many of the next block's first units an auxiliary begins with, copied or shared."""
        return self.momentum.momentum_units if self.momentum else int(self.overlaps)

    def need_whole_units(self, what: str) -> None:
        """Raises ``ValueError`` if units are shared by neighbours, which ``what`` takes apart."""
        if self.overlaps:
            raise ValueError(
                f"{self.method} trains a block's first unit from the block before as well, and "
                f"{what} takes the two apart; use one process or data parallelism, or "
                f"man_{self.base}."
            )


def base_method(method: str) -> str:
    """``man_dgl`` -> ``dgl``."""
    return method.removeprefix(f"{_wrapper(method)}_")


def _wrapper(method: str) -> str:
    """``man_dgl`` -> ``man``; empty for a base method."""
    wrapper, _, base = method.partition("_")
    return wrapper if base and wrapper in WRAPPERS else ""


def _has_momentum(method: str) -> bool:
    return _wrapper(method) in ("man", "manpp")


def is_zoo_name(name: str) -> bool:
    """Whether a name is ``{backbone}_{method}_k{K}``."""
    return _match(name) is not None


def _match(name: str) -> re.Match[str] | None:
    methods = "|".join(sorted(list_methods(), key=len, reverse=True))
    return re.fullmatch(rf"(.+?)_({methods})_k(\d+)", name)


def parse_name(name: str) -> tuple[str, str, int]:
    """Backbone, method and K of a zoo name.

    Raises:
        ValueError: If the name is not ``{backbone}_{method}_k{K}``.
    """
    match = _match(name)
    if match is None:
        raise ValueError(f"{name!r} is not a zoo name; expected {{backbone}}_{{method}}_k{{K}}.")
    return match[1], match[2], int(match[3])


def check_method(method: str) -> None:
    """Raises ``ValueError`` for an unknown method."""
    if method not in list_methods():
        raise unknown("method", method, list_methods())


def take_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Take every keyword of ours out of ``keywords``; what is left is timm's."""
    ours = {*_SHARED_KEYWORDS, *_MOMENTUM_KEYWORDS}
    ours |= {key for base in METHODS for key in head_keywords(base)}
    return {key: keywords.pop(key) for key in ours & keywords.keys()}


def method_keywords(method: str, task: str = CLASSIFICATION) -> list[str]:
    """Keywords that a model of this method takes for a task, beside timm's."""
    base = base_method(method)
    of_momentum = _MOMENTUM_KEYWORDS if _has_momentum(method) else ()
    dense = () if task == CLASSIFICATION else _CLASSIFIER_KEYWORDS
    return sorted({*_SHARED_KEYWORDS, *head_keywords(base), *of_momentum}.difference(dense))


def make_spec(
    backbone: str,
    method: str,
    k: int,
    keywords: Mapping[str, Any],
    tokens: bool = False,
    task: str = CLASSIFICATION,
) -> LocalSpec:
    """The spec of a method, with the defaults under the keywords given.

    Args:
        backbone: timm name of the backbone, without a tag.
        method: Method name.
        k: Number of local blocks.
        keywords: ``cuts``, ``head_norm``, ``recompute`` and the method's own.
        tokens: Whether the backbone passes tokens on (ViT), which changes some defaults.
        task: Name of the task, which changes others.

    Raises:
        ValueError: For a keyword of another method than this one, or a value it does not take.
    """
    base = base_method(method)
    accepted = method_keywords(method, task)
    for key in keywords:
        if key not in accepted:
            what = method if task == CLASSIFICATION else f"{method} for {task}"
            raise unknown(f"keyword for {what}", key, accepted)
    settings = _default_settings(backbone, method, k, tokens, task) | dict(keywords)
    momentum = None
    if _has_momentum(method):
        chosen = {key: settings[key] for key in _MOMENTUM_KEYWORDS if key in settings}
        momentum = MomentumSettings(scale=method.startswith("manpp"), **chosen)
    return LocalSpec(
        backbone,
        method,
        k,
        cuts=settings.get("cuts"),
        head_settings={key: settings[key] for key in head_keywords(base) if key in settings},
        momentum=momentum,
        head_norm=settings.get("head_norm", "batch"),
        recompute=settings.get("recompute"),
    )


def _default_settings(
    backbone: str, method: str, k: int, tokens: bool, task: str
) -> dict[str, Any]:
    """Defaults that depend on the name: those of the published results, but for MAN's form."""
    base = base_method(method)
    settings: dict[str, Any] = {}
    if task != CLASSIFICATION:
        settings |= _PUBLISHED_DENSE.get((task, base), {})
    elif base == "dgl" and tokens:
        settings["head"] = "token"
    elif base == "dgl" and method != base:
        # The head of the release that gave MAN's published numbers; overlap is MAN's control.
        settings["head"] = "wide"
    if method.startswith("manpp"):
        settings["form"] = "release"  # it has two branches to weigh
        if tokens:
            settings["learnable_units"] = 1
    if task == CLASSIFICATION:
        published = method.replace("overlap", "man")  # which it is the control of
        for key in ((backbone, published, None), (backbone, published, k)):
            settings |= _PUBLISHED_LAMBDAS.get(key, {})
    return settings


def head_keywords(base: str) -> tuple[str, ...]:
    """Keywords of a base method's head."""
    if base not in METHODS:
        return ()
    parameters = inspect.signature(METHODS[base]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
