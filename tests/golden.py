"""Replay golden training steps of a published implementation through LocalModel, in float64.

``python tests/golden.py PATH_WITHOUT_EXTENSION`` reads PATH.json and PATH.safetensors, prints the
worst relative errors of the losses, of the last step's logits and of the tensors after the steps,
and exits 0 only if the losses agree to 1e-6.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

import man_zoo

TOLERANCE = 1e-6


def build(info: dict[str, Any], tensors: dict[str, Tensor]) -> man_zoo.LocalModel:
    """The LocalModel that a golden pair describes, with its weights, in float64."""
    method, *loss = info["method"].split("_contrast")
    keywords = _keywords(info["settings"], method, tensors)
    if loss:
        keywords["local_loss"] = "contrast"
    if info.get("ema_momentum") is not None:
        keywords["momentum"] = info["ema_momentum"]
    classes = tensors["fc.weight"].shape[0]
    # AugLocal's file lists the cuts that are left of K - 1; K itself gives them.
    cuts = {} if method.endswith("auglocal") else {"cuts": info["cuts_after"]}
    model = man_zoo.localize(
        info["backbone"],
        method=method,
        k=info["k"],
        num_classes=classes,
        **cuts,
        **keywords,
    )
    model = model.double()
    weights = tensors.keys() - {"input", "target"}
    state = {_our_name(name, model): tensors[name] for name in weights}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"Golden weights do not fit: missing {missing}, unexpected {unexpected}.")
    return model.train()


def _keywords(settings: dict[str, Any], method: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    names = {"lambda1", "lambda2", "sim_weight", "pred_weight", "aux_depth", "pyramid_coeff"}
    keywords = {name: settings[name] for name in names & settings.keys()}
    if method.startswith("man"):
        keywords["form"] = "release"  # the pairs are of what the releases run
    if method.endswith("infopro"):
        keywords["classifier"] = settings.get("classifier", "1c2f")
        if settings.get("loss") == "contrast":
            keywords["local_loss"] = "contrast"
    if method.endswith("dgl"):
        # The narrow head's sequence begins with a pooling layer, the wide one's with a convolution.
        wide = "aux.0.classifier.0.weight" in tensors
        keywords["head"] = "wide" if wide else "narrow"
        if wide:
            keywords["width"] = tensors["aux.0.classifier.0.weight"].shape[0]
    return keywords


def _our_name(name: str, model: man_zoo.LocalModel) -> str:
    match = re.fullmatch(r"aux\.(\d+)\.(.+)", name)
    if match is None:
        return f"backbone.{name}"
    j, rest = int(match[1]), match[2]
    part, _, inner = rest.partition(".")
    if part in ("bias", "ema"):
        return f"auxiliaries.{j}.momentum.{part}.0.{inner}"
    if part == "scale":
        return f"auxiliaries.{j}.momentum.scale"
    head: Any = model.auxiliaries[j].head
    if part == "classifier" and model.spec.base == "auglocal":
        return f"auxiliaries.{j}.head.{_auglocal_layer(inner, head)}"
    return f"auxiliaries.{j}.head.{rest}"


def _auglocal_layer(inner: str, head: Any) -> str:
    layer, _, parameter = inner.partition(".")
    if int(layer) < len(head.features):
        return f"features.{layer}.{parameter}"
    # Units, pooling, flattening, then BatchNorm (shallow heads only) and the linear layer.
    return f"classifier.{int(layer) - len(head.features) - 2}.{parameter}"


class Errors(NamedTuple):
    """Worst relative errors of a replay."""

    losses: float
    logits: float
    tensors: float


def replay(path: Path) -> Errors:
    """Train on a golden pair as its file says, and compare."""
    info = json.loads(path.with_name(path.name + ".json").read_text())
    tensors = load_file(path.with_name(path.name + ".safetensors"))
    model = build(info, tensors)
    settings = {k: v for k, v in info["optimizer"].items() if k != "name"}
    optimizer = getattr(torch.optim, info["optimizer"]["name"])(
        [p for p in model.parameters() if p.requires_grad], **settings
    )
    images, target = tensors["input"].double(), tensors["target"]
    losses = []
    for _ in info["losses_per_step"]:
        optimizer.zero_grad()
        out = model.local_step(images, target)
        optimizer.step()
        losses.append(out.losses)
    assert out.logits is not None
    wanted = _double(info["losses_per_step"])
    wanted_logits = _double(info["logits_step3"])
    return Errors(
        losses=_worst(torch.stack(losses) - wanted, wanted),
        logits=_worst(out.logits - wanted_logits, wanted_logits.norm()),
        tensors=_worst_tensor(model, info["after_3_steps_sum_norm"]),
    )


def _worst_tensor(model: man_zoo.LocalModel, wanted: dict[str, list[float]]) -> float:
    state = model.state_dict()
    errors = []
    for name, sum_and_norm in wanted.items():
        if name.endswith("num_batches_tracked"):
            continue
        tensor = state[_our_name(name, model)]
        error = torch.stack([tensor.sum(), tensor.norm()]) - _double(sum_and_norm)
        errors.append(_worst(error, max(sum_and_norm[1], 1e-12)))
    return _worst(_double(errors), 1.0)


def _double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _worst(error: Tensor, size: Tensor | float) -> float:
    """The largest relative error; NaN where there is one, which no tolerance admits."""
    return (error.abs() / torch.as_tensor(size).abs()).max().item()


def main(path: str) -> int:
    errors = replay(Path(path))
    for name, error in errors._asdict().items():
        print(f"worst relative error of the {name:<8}{error:.3e}")
    return 0 if errors.losses <= TOLERANCE else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/golden.py PATH_WITHOUT_EXTENSION")
    sys.exit(main(sys.argv[1]))
