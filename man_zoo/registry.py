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
    default_cfgs.update(generate_default_cfgs({name: _without_weights(backbone)}))
    register_model(create)


def _without_weights(backbone: str) -> PretrainedCfg:
    """The backbone's cfg for a network whose weights are not the backbone's own."""
    cfg = resolve_pretrained_cfg(backbone)
    return dataclasses.replace(
        cfg, url=None, file=None, hf_hub_id=None, hf_hub_filename=None, source=None, tag=None
    )


def _create(name: str, backbone: str, kwargs: dict[str, Any]) -> nn.Module:
    cfg = resolve_pretrained_cfg(name, kwargs.pop("pretrained_cfg", None))
    if kwargs.pop("features_only", False):
        for key in ("method", "k"):
            kwargs.pop(key)
        return timm.create_model(backbone, features_only=True, pretrained_cfg=cfg, **kwargs)
    return localize(backbone, pretrained_cfg=cfg, **kwargs)


for _backbone, _ks in ZOO.items():
    register(_backbone, 1, END_TO_END)
    register(_backbone, _ks)
