"""The model of a run: from its flags, and with its weights."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from timm import is_model
from timm.data import resolve_data_config
from timm.models import parse_model_name, resolve_model_input_args, split_model_name_tag

from ..console import UserError, user_errors
from ..data import LoaderInfo
from ..local_model import LocalModel
from ..localize import is_planned, localize
from ..planner import Setting
from ..registry import with_weights
from ..spec import END_TO_END, is_zoo_name, parse_name
from ..tasks import create_task
from .checkpoints import find_checkpoint, load_network, load_weights
from .config import read_args
from .folder import CHECKPOINTS
from .metadata import load_metadata
from .untrusted import blaming_files_of


def preprocessing_of(model: str, pretrained: bool) -> dict[str, Any]:
    """Size, mean, std, interpolation and crop of the images that a model is for, as timm has them.

    Args:
        model: A name with or without a tag, ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``.
        pretrained: Whether its weights are loaded. If not, a zoo name means its backbone, so that
            every method sees the same images, whatever weights there are.

    Raises:
        UserError: If the folder or repository cannot be read.
    """
    if is_zoo_name(model) and not pretrained:
        model = parse_name(model)[0]
    if not (parse_model_name(model)[0] or is_model(model)):
        return {}  # create_model says which names there are
    # What the folder or repository of someone else holds can fail in any way.
    with user_errors(Exception, about=f"--model {model}"), blaming_files_of(model):
        return resolve_data_config({}, resolve_model_input_args(model)["pretrained_cfg"])


def create_model(
    args: Namespace, data: LoaderInfo, *, auxiliaries: bool = True, pretrained: bool | None = None
) -> LocalModel:
    """The model that the flags name, for the data's classes and size.

    Args:
        args: Flags of the recipe.
        data: What the model is for.
        auxiliaries: Whether to build them.
        pretrained: Whether to load pretrained weights; as the flags say by default.

    Raises:
        ValueError: For an unknown name or method, an impossible K, a cut that does not exist.
        UserError: For a keyword that the model does not take, or weights that there are not or that
            cannot be read.
    """
    channels, height, width = data.input_size
    flags = {
        "cuts": " ".join(args.cuts) if args.cuts else None,
        "recompute": " ".join(args.recompute) if args.recompute else None,
        "form": args.form,
        "momentum": args.man_momentum,
    }
    keywords = {key: value for key, value in flags.items() if value is not None} | args.model_kwargs
    if channels != 3 or args.pretrained:
        keywords["in_chans"] = channels
    keywords["num_classes"] = data.num_classes
    task = create_task(data.task, data.num_classes, args.decoder)
    backbone, method, k = args.model, args.method or END_TO_END, args.k
    name, tag = split_model_name_tag(args.model)
    named = is_zoo_name(name)
    if named:
        backbone, named_method, named_k = parse_name(name)
        method, k = args.method or named_method, args.k or named_k
    if END_TO_END in (method, args.method) or args.tune == "head":
        if args.k not in (None, 1):
            raise UserError(f"--k {args.k} is for a local --method; end to end is one block.")
        method, k = END_TO_END, None
    planned = is_planned({"memory_budget": args.memory_budget} | keywords)
    step = vars(step_setting(args)) if planned else {}
    # What the folder or repository of someone else holds can fail in any way.
    kinds = (Exception,) if ":" in backbone else (TypeError, RuntimeError)
    with user_errors(*kinds, about=f"--model {args.model}"), blaming_files_of(backbone):
        if named and args.pretrained:
            keywords = with_weights(name, tag, keywords)
        model = localize(
            backbone,
            method,
            k,
            pretrained=args.pretrained if pretrained is None else pretrained,
            auxiliaries=auxiliaries,
            criterion=task.criterion(args.smoothing),
            task=data.task,
            decoder=args.decoder,
            img_size=(height, width),
            pretrained_cfg_overlay={"mean": data.mean, "std": data.std},
            memory_budget=args.memory_budget,
            calibrate=args.calibrate,
            **step,
            **keywords,
        )
    if args.tune == "head":
        model.backbone.requires_grad_(False)
        if model.decoder is None:
            heads = model.backbone.get_classifier()
            for head in heads if isinstance(heads, tuple) else (heads,):  # DeiT has two
                head.requires_grad_(True)
    return model


def step_setting(args: Namespace) -> Setting:
    """What the flags say of a step in this process: what the planner has to count."""
    state = PartialState()
    return Setting(
        args.batch_size,
        args.opt,
        args.mixed_precision or "no",
        "cuda" if state.device.type == "cuda" else "cpu",
        opt_kwargs={
            "momentum": args.momentum,
            "weight_decay": args.weight_decay,
            "filter_bias_and_bn": args.filter_bias_and_bn,
            **args.opt_kwargs,
        },
        grad_accum_steps=args.grad_accum_steps,
        model_ema=args.model_ema,
        processes=state.num_processes // args.block_parallel,
        channels_last=args.channels_last,
        soft_target=bool(args.mixup or args.cutmix),
        micro_batches=args.micro_batches,
    )


def load_run(run: Path, checkpoint: str = "last", *, auxiliaries: bool = True) -> LocalModel:
    """The model of a run with the weights of a checkpoint.

    Args:
        run: A run folder of the training recipe.
        checkpoint: As :func:`~man_zoo.runs.checkpoints.find_checkpoint` takes it.
        auxiliaries: Whether to build the auxiliaries and load their weights.

    Raises:
        UserError: If there is no run, or the checkpoint is damaged.
        ValueError: If there is no such checkpoint.
    """
    data = load_metadata(run).data
    source = find_checkpoint(run / CHECKPOINTS, checkpoint)
    model = create_model(read_args(run), data, auxiliaries=auxiliaries, pretrained=False)
    (load_weights if auxiliaries else load_network)(model, source)
    return model
