"""Any timm backbone as a model that learns locally."""

import re
from collections.abc import Callable
from typing import Any

import timm
from timm.layers import Format, to_2tuple
from timm.models import parse_model_name, resolve_model_input_args, resolve_pretrained_cfg
from torch import Tensor

from .families import list_units
from .local_model import LocalModel
from .messages import unknown
from .spec import END_TO_END, check_method, make_spec, method_keywords, take_keywords


def localize(
    backbone: str,
    method: str = "man_dgl",
    k: int | None = None,
    *,
    pretrained: bool = False,
    auxiliaries: bool | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    img_size: int | tuple[int, int] | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **keywords: Any,
) -> LocalModel:
    """Split a timm model into K local blocks with the auxiliaries of a method.

    Args:
        backbone: timm name, a pretrained tag included if you like, or ``hf-hub:ORG/NAME`` or
            ``local-dir:FOLDER``.
        method: ``"e2e"``, ``"dgl"``, ``"infopro"``, ``"predsim"``, ``"auglocal"``, or one of the
            last four behind ``man_`` or ``manpp_``.
        k: Number of local blocks; may be left out for ``"e2e"``.
        pretrained: Load the backbone's pretrained weights.
        auxiliaries: Whether to build the auxiliaries; by default unless ``pretrained``, because a
            pretrained model is for inference and fine-tuning.
        criterion: Classification loss; cross-entropy by default.
        img_size: Height and width of the images, in pixels; the model's own by default.
        pretrained_cfg: As timm takes it.
        pretrained_cfg_overlay: As timm takes it.
        keywords: ``cuts``, ``head_norm``, the method's own (see its page in docs/) and timm's.

    Raises:
        ValueError: For an unknown backbone, method or keyword, an impossible K, a cut that does
            not exist.
    """
    if parse_model_name(backbone)[0]:
        keywords = resolve_model_input_args(backbone, **keywords)
        backbone, pretrained_cfg = keywords.pop("model_name"), keywords.pop("pretrained_cfg")
    if not timm.is_model(backbone):
        raise unknown("backbone", backbone, timm.list_models())
    check_method(method)
    if method == END_TO_END:
        k = 1 if k is None else k
    if k is None:
        raise ValueError(f"{method!r} needs k=, the number of local blocks.")
    local_keywords = take_keywords(keywords)
    cfg = resolve_pretrained_cfg(backbone, pretrained_cfg, pretrained_cfg_overlay)
    channels, *size = cfg.input_size
    overlay = {"architecture": timm.models.get_arch_name(backbone)} | (pretrained_cfg_overlay or {})
    if img_size is not None:
        size = to_2tuple(img_size)
        overlay["input_size"] = (channels, *size)
        if cfg.fixed_input_size:
            keywords["img_size"] = img_size
    try:
        model = timm.create_model(
            backbone,
            pretrained=pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            **keywords,
        )
    except TypeError as error:
        stray = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if stray is None:
            raise
        what = f"keyword for {method} that {backbone} does not take either"
        raise unknown(what, stray[1], method_keywords(method)) from error
    tokens = list_units(model).layout.format is Format.NLC
    spec = make_spec(timm.models.get_arch_name(backbone), method, k, local_keywords, tokens)
    return LocalModel(
        model,
        spec,
        input_size=(keywords.get("in_chans", channels), *size),
        auxiliaries=not pretrained if auxiliaries is None else auxiliaries,
        criterion=criterion,
    )
