"""Zoo names -> models, registered with timm: ``{backbone}_{method}_k{K}``."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import timm
from timm.models import PretrainedCfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from .localize import localize
from .messages import unknown
from .spec import END_TO_END, LocalSpec, list_methods, parse_name
from .weights import BrokenIndexError, Weights, read_index, train_command

# K: where cuts are published, and every unit a block.
ZOO: dict[str, tuple[int, ...]] = {
    "resnet20": (4, 10),
    "resnet32": (8, 16),
    "resnet110": (2, 3, 4, 8, 16, 32, 55),
    "resnet50": (2, 4),
    "resnet101": (2, 4),
    "resnet152": (2, 4),
    "resnext101_32x8d": (2, 4),
    "vit_tiny_patch16_224": (2, 4),
    "vit_small_patch16_224": (2, 4),
    "vit_base_patch16_224": (2, 4),
}

__all__ = ["register"]
default_cfgs: dict[str, Any] = {}
try:
    index = read_index()
except BrokenIndexError:  # is for who asks for weights; all else works without
    index = {}


def register(
    backbone: str, ks: int | Iterable[int], methods: str | Iterable[str] | None = None
) -> list[str]:
    """Add zoo names for a backbone to timm's registry.

    Args:
        backbone: timm name.
        ks: Numbers of local blocks.
        methods: Method names; all of them by default.

    Returns:
        The names that ``timm.create_model`` takes from now on.

    Raises:
        ValueError: For an unknown backbone or method.
    """
    if not timm.is_model(backbone):
        raise unknown("backbone", backbone, timm.list_models())
    local_methods = [method for method in list_methods() if method != END_TO_END]
    methods = [methods] if isinstance(methods, str) else methods or local_methods
    ks = [ks] if isinstance(ks, int) else list(ks)
    names = [LocalSpec(backbone, method, k).name for method in methods for k in ks]
    for name in names:
        _register(name)
    return names


def _register(name: str) -> None:
    backbone, method, k = parse_name(name)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        named = {"method": method, "k": k, "pretrained": pretrained}
        return _create(name, backbone, named | kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{backbone} in {k} local blocks, trained by {method}."
    default_cfgs.update(generate_default_cfgs(_cfgs(name, backbone)))
    register_model(create)


def _cfgs(name: str, backbone: str) -> dict[str, dict[str, Any] | PretrainedCfg]:
    """One for each of the network's weights in the index; an empty one if there are none.

    timm lists those alone whose cfg says where the weights are: the ones that can be loaded.
    """
    trained: dict[str, dict[str, Any] | PretrainedCfg] = {
        weights.title: weights.arguments()["pretrained_cfg"]
        for weights in index.values()
        if weights.name == name
    }
    return trained or {name: _without_weights(backbone)}


def _without_weights(backbone: str) -> PretrainedCfg:
    """The backbone's cfg for a network whose weights are not the backbone's own."""
    cfg = resolve_pretrained_cfg(backbone)
    return dataclasses.replace(
        cfg, url=None, file=None, hf_hub_id=None, hf_hub_filename=None, source=None, tag=None
    )


def _create(name: str, backbone: str, kwargs: dict[str, Any]) -> nn.Module:
    given = kwargs.pop("pretrained_cfg", None)
    if kwargs["pretrained"]:
        kwargs = with_weights(name, given, kwargs)
    else:
        # Untrained and untagged, it is the backbone's network, whatever weights there are.
        cfg = resolve_pretrained_cfg(name, given) if given else _without_weights(backbone)
        kwargs["pretrained_cfg"] = cfg
    if kwargs.pop("features_only", False):
        for key in ("method", "k"):
            kwargs.pop(key)
        return timm.create_model(backbone, features_only=True, **kwargs)
    return localize(backbone, **kwargs)


def with_weights(name: str, given: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords with a cfg whose weights are there to load: fetched and checked, or the caller's.

    Args:
        name: Zoo name.
        given: A tag, or a cfg as timm takes it; the default tag if it is empty.
        kwargs: Further keywords of the model; they win over those that the weights are of.

    Raises:
        RuntimeError: As timm's, if there are no weights, or they cannot be fetched.
    """
    if not index and not isinstance(given, PretrainedCfg):
        read_index()  # says what is wrong with it, if anything is
    cfg = resolve_pretrained_cfg(name, given, kwargs.get("pretrained_cfg_overlay"))
    weights = index.get(f"{name}.{cfg.tag}")
    if not (cfg.has_weights or cfg.state_dict):
        if weights is not None:
            raise RuntimeError(weights.absence)
        raise RuntimeError(
            f"No pretrained weights exist for {name}. Use `pretrained=False` for random init, "
            f"train it with `{train_command(name)}`, or choose one of `man-zoo list --pretrained`."
        )
    if weights is None or not _is_indexed(cfg, weights):
        return kwargs | {"pretrained_cfg": cfg}
    return weights.arguments(weights.fetch(kwargs.get("cache_dir"))) | kwargs


def _is_indexed(cfg: PretrainedCfg, weights: Weights) -> bool:
    """Whether a cfg loads the weights of the index, and not others that the caller gave."""
    own = weights.arguments()["pretrained_cfg"]
    return all(getattr(cfg, key) == own.get(key) for key in ("url", "file", "hf_hub_id"))


for _backbone, _ks in ZOO.items():
    register(_backbone, 1, END_TO_END)
    register(_backbone, _ks)
for _weights in index.values():
    if not timm.is_model(_weights.name) and timm.is_model(parse_name(_weights.name)[0]):
        _register(_weights.name)
