"""Any timm backbone as a model that learns locally."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import timm
from timm.layers import Format, to_2tuple
from timm.models import parse_model_name, resolve_model_input_args, resolve_pretrained_cfg
from torch import Tensor

from .families import list_units
from .local_model import LocalModel
from .messages import unknown
from .planner import BALANCED, Plan, Planner, Setting, budget_bytes, measuring
from .spec import (
    CLASSIFICATION,
    END_TO_END,
    check_method,
    make_spec,
    method_keywords,
    take_keywords,
)
from .tasks import create_task, settings_of


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
    memory_budget: float | str | None = None,
    calibrate: bool = False,
    task: str = CLASSIFICATION,
    decoder: str | None = None,
    **keywords: Any,
) -> LocalModel:
    """Split a timm model into K local blocks with the auxiliaries of a method.

    Args:
        backbone: timm name, a pretrained tag included if you like, or ``hf-hub:ORG/NAME`` or
            ``local-dir:FOLDER``.
        method: ``"e2e"``, ``"dgl"``, ``"infopro"``, ``"predsim"``, ``"auglocal"``, or one of the
            last four behind ``man_``, ``manpp_`` or ``overlap_``.
        k: Number of local blocks; may be left out for ``"e2e"`` and with ``memory_budget``.
        pretrained: Load the backbone's pretrained weights.
        auxiliaries: Whether to build the auxiliaries; by default unless ``pretrained``, because a
            pretrained model is for inference and fine-tuning.
        criterion: The task's loss by default.
        img_size: Height and width of the images, in pixels; the model's own by default.
        pretrained_cfg: As timm takes it.
        pretrained_cfg_overlay: As timm takes it.
        memory_budget: Bytes, or e.g. ``"6GiB"``, for everything that lives during a training step:
            the planner chooses the cuts, and what of K, form and recomputation is not given.
        calibrate: Whether the planner times the pieces on the device at hand, in channels-last
            order as the training recipe runs them, and keeps seconds small instead of arithmetic.
        task: What is learnt: ``"classification"``, ``"segmentation"``, which takes ``num_classes=``
            and, of timm, ``output_stride=``, or ``"detection"``, which takes ``num_classes=``,
            ``anchor_size=`` and ``pyramid_width=``.
        decoder: Of segmentation ``"deeplabv3"`` (default) or ``"fpn"``, of detection
            ``"retinanet"`` (default) or ``"retinanet_v2"``.
        keywords: ``cuts``, ``recompute``, ``head_norm``, the method's own (see its page in docs/)
            and timm's; and for the planner (``memory_budget``, ``cuts="balanced"``), and no other
            call, what a step is, ``batch_size`` and more, as :class:`man_zoo.planner.Setting` takes
            it. ``device`` is the planner's there, and timm's otherwise.

    Raises:
        ValueError: For an unknown backbone, method or keyword, an impossible K, a cut that does
            not exist, a memory budget that cannot be met.
    """
    if parse_model_name(backbone)[0]:
        keywords = resolve_model_input_args(backbone, **keywords)
        backbone, pretrained_cfg = keywords.pop("model_name"), keywords.pop("pretrained_cfg")
    if not timm.is_model(backbone):
        raise unknown("backbone", backbone, timm.list_models())
    check_method(method)
    if method == END_TO_END:
        k = 1 if k is None else k
    if k is None and memory_budget is None:
        raise ValueError(f"{method!r} needs k=, the number of local blocks, or memory_budget=.")
    dense = task != CLASSIFICATION
    what = None
    if dense or decoder is not None:
        settings = {key: keywords.pop(key) for key in settings_of(task) if key in keywords}
        what = create_task(task, keywords.pop("num_classes", 0), decoder, **settings)
    local_keywords = take_keywords(keywords)
    planned = is_planned({"memory_budget": memory_budget} | local_keywords)
    step = _step_keywords(keywords, planned)
    cfg = resolve_pretrained_cfg(backbone, pretrained_cfg, pretrained_cfg_overlay)
    channels, *size = cfg.input_size
    if img_size is not None:
        size = to_2tuple(img_size)
        if cfg.fixed_input_size:
            keywords["img_size"] = img_size
    overlay = {"architecture": timm.models.get_arch_name(backbone)} | (pretrained_cfg_overlay or {})
    # Also where it is the default: timm makes vitamin_xlarge_336 with the settings of another.
    overlay["input_size"] = (channels, *size)
    model = create_backbone(
        backbone,
        method,
        pretrained=pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        **({"num_classes": 0} if dense else {}),
        **keywords,
    )
    name, input_size = (
        timm.models.get_arch_name(backbone),
        (keywords.get("in_chans", channels), *size),
    )
    if planned:
        if step.get("batch_size") is None:
            raise ValueError("memory_budget= and cuts='balanced' need batch_size=, images a step.")
        create = partial(
            Planner,
            model,
            name,
            method,
            input_size=input_size,
            setting=Setting(**({"channels_last": calibrate} | step)),
            criterion=criterion,
            calibrate=calibrate,
            task=what,
        )
        chosen = plan(create, k, memory_budget, local_keywords)
        k, local_keywords = chosen.spec.k, local_keywords | chosen.keywords()
        local_keywords.pop("k")
    assert k is not None
    tokens = list_units(model).layout.format is Format.NLC
    return LocalModel(
        model,
        make_spec(name, method, k, local_keywords, tokens, task),
        input_size=input_size,
        auxiliaries=not pretrained if auxiliaries is None else auxiliaries,
        criterion=criterion,
        task=what,
    )


def is_planned(keywords: Mapping[str, Any]) -> bool:
    """Whether a model of these keywords of :func:`localize` is one that the planner cuts."""
    return keywords.get("memory_budget") is not None or keywords.get("cuts") == BALANCED


def _step_keywords(keywords: dict[str, Any], planned: bool) -> dict[str, Any]:
    """Take what a step is out of ``keywords``, for the planner.

    Raises:
        ValueError: If nothing is planned.
    """
    named = [f.name for f in fields(Setting) if f.name in keywords]
    if not planned:
        named = [name for name in named if name != "device"]  # which timm takes as well
        if named:
            raise ValueError(
                f"{', '.join(f'{name}=' for name in named)} says what a step is, for the planner; "
                "give memory_budget= or cuts='balanced' as well, or leave it out."
            )
    return {name: keywords.pop(name) for name in named}


def create_backbone(backbone: str, method: str, **keywords: Any) -> Any:
    """timm's model, and a sentence where it does not take a keyword.

    Args:
        backbone: timm name.
        method: For the sentence.
        keywords: Of ``timm.create_model``.

    Raises:
        ValueError: For a keyword that the backbone does not take, or an output stride.
    """
    stride = keywords.get("output_stride")
    try:
        return timm.create_model(backbone, **keywords)
    except (TypeError, AssertionError, NotImplementedError) as error:
        stray = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if stray is not None and stray[1] != "output_stride":
            what = f"keyword for {method} that {backbone} does not take either"
            raise unknown(what, stray[1], method_keywords(method)) from error
        if stride is None:
            raise
        raise ValueError(
            f"{backbone} takes no output_stride={stride}: ResNet, ConvNeXt and EfficientNet "
            "take 8, 16 or 32, and most other families keep their own; leave it out there."
        ) from error


def plan(
    create: Callable[..., Planner],
    k: int | None,
    memory_budget: float | str | None,
    keywords: dict[str, Any],
) -> Plan:
    """The planner's answer for a model that is there: within a budget, or the cuts of least peak.

    Args:
        create: Makes the planner; what it still takes are the method's keywords and the progress.
        k: Number of local blocks, if it is given.
        memory_budget: As :func:`localize` takes it.
        keywords: Of the local method.

    Raises:
        ValueError: For cuts beside a budget, an impossible K, a budget that cannot be met.
    """
    given = {key: value for key, value in keywords.items() if key not in ("cuts", "recompute")}
    recompute = keywords.get("recompute")
    if memory_budget is not None and keywords.get("cuts") not in (None, BALANCED):
        raise ValueError("memory_budget= chooses the cuts; leave cuts= out, or the budget.")
    with measuring() as progress:
        planner = create(keywords=given, progress=progress)
        if memory_budget is not None:
            return planner.within(budget_bytes(memory_budget), k, recompute)
        assert k is not None
        return planner.balanced(k, recompute)
