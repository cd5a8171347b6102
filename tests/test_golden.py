"""Training steps agree with those of published implementations, and with a plain one of our own."""

import json
import math
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import man_zoo

HERE = Path(__file__).parent
KEPT = HERE / "golden_steps"
OTHERS = HERE.parent.parent / "shared" / "golden"
# The references took the image's mean and std (InfoPro) and the similarity of the targets (PredSim)
# in float32: the last digits of these hang on the processor and on torch's version.
IN_FLOAT32 = ("infopro", "predsim")
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
SETTINGS = ("lambda1", "lambda2", "classifier", "sim_weight", "pred_weight")


def pairs(folder: Path) -> list[Path]:
    return [path.with_suffix("") for path in sorted(folder.glob("*.json"))]


def assert_agrees(path: Path) -> None:
    errors = golden.replay(path)
    rounded = any(method in path.name for method in IN_FLOAT32)
    assert errors.losses < (golden.TOLERANCE if rounded else 1e-11)
    assert max(errors) < golden.TOLERANCE


@pytest.mark.parametrize("path", pairs(KEPT), ids=lambda path: path.name)
def test_steps_agree_with_a_published_implementation(path: Path) -> None:
    assert_agrees(path)


@pytest.mark.skipif(not pairs(OTHERS), reason="only a few golden steps are part of the repository")
@pytest.mark.parametrize(
    "path", [p for p in pairs(OTHERS) if p.name not in {kept.name for kept in pairs(KEPT)}]
)
def test_steps_agree_with_the_other_golden_steps(path: Path) -> None:
    assert_agrees(path)


@pytest.mark.parametrize(("factor", "status"), [(1, 0), (1 + 1e-5, 1), (math.nan, 1)])
def test_the_exit_status_tells_whether_losses_agree(
    factor: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = write_pair(tmp_path, "resnet20", "dgl", 4)
    info = json.loads(pair.with_suffix(".json").read_text())
    info["losses_per_step"][1][2] *= factor
    pair.with_suffix(".json").write_text(json.dumps(info))
    assert golden.main(str(pair)) == status
    assert "losses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("backbone", "method", "k", "settings"),
    [
        ("resnet110", "dgl", 16, {}),
        ("resnet110", "man_dgl", 55, {"form": "release", "head": "wide", "width": 8}),
        pytest.param("resnet110", "manpp_predsim", 32, {}, marks=pytest.mark.slow),
        ("resnet20", "manpp_infopro", 4, {"lambda1": (5, 0), "classifier": "2c2f"}),
        ("resnet20", "man_dgl", 10, {"form": "release", "head": "narrow", "momentum": 0.9}),
        ("resnet32", "manpp_predsim", 8, {"sim_weight": 0.9}),
    ],
)
def test_other_backbones_methods_and_ks_replay(
    backbone: str, method: str, k: int, settings: dict, tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, backbone, method, k, **settings)
    errors = golden.replay(pair)
    assert errors.losses < 1e-11
    assert max(errors) < 1e-9


# A golden pair of our own, from a step that shares nothing with man_zoo.local_step ---------------


def write_pair(folder: Path, backbone: str, method: str, k: int, **settings) -> Path:
    torch.manual_seed(0)
    model = man_zoo.localize(backbone, method, k, **settings)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([2, 0, 9, 9])
    tensors = {_golden_name(name): t.clone() for name, t in model.state_dict().items()}
    path = folder / f"{method}_{backbone}_k{k}"
    save_file(tensors | {"input": images, "target": target}, path.with_suffix(".safetensors"))
    model.double().train()
    losses, logits = plain_steps(model, images.double(), target)
    info = {
        "method": method,
        "backbone": backbone,
        "k": k,
        "cuts_after": [model.unit_names[cut] for cut in model.cuts],
        "settings": {key: settings[key] for key in SETTINGS if key in settings},
        "ema_momentum": settings.get("momentum", 0.995) if model.links else None,
        "optimizer": {"name": "SGD", **SGD},
        "losses_per_step": losses,
        "logits_step3": logits,
        "after_3_steps_sum_norm": {
            _golden_name(name): [tensor.sum().item(), tensor.norm().item()]
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        },
    }
    path.with_suffix(".json").write_text(json.dumps(info))
    return path


def _golden_name(name: str) -> str:
    if name.startswith("backbone."):
        return name.removeprefix("backbone.")
    _, j, part, rest = name.split(".", 3)
    if part == "momentum":
        rest = rest.replace("bias.0.", "bias.", 1).replace("ema.0.", "ema.", 1)
    return f"aux.{j}.{rest}"


def plain_steps(
    model: man_zoo.LocalModel, images: Tensor, target: Tensor
) -> tuple[list[list[float]], list[list[float]]]:
    """Two steps with one backward for all blocks, a hand-written EMA and torch's SGD."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **SGD)
    units = [torch.nn.Module.get_submodule(model.backbone, n) for n in model.unit_names[1:]]
    history = []
    for _ in range(2):
        losses, logits = _plain_losses(model, units, images, target)
        optimizer.zero_grad()
        sum(losses).backward()
        for cut, auxiliary in zip(model.cuts, model.auxiliaries, strict=True):
            if model.links:
                _plain_ema(auxiliary.momentum, units[cut])
        optimizer.step()
        history.append([loss.item() for loss in losses])
    return history, logits.tolist()


def _plain_losses(
    model: man_zoo.LocalModel, units: list[torch.nn.Module], images: Tensor, target: Tensor
) -> tuple[list[Tensor], Tensor]:
    backbone = model.backbone
    h, losses = backbone.act1(backbone.bn1(backbone.conv1(images))), []
    for i, unit in enumerate([None, *units]):
        h = h if unit is None else unit(h)
        if i in model.cuts:
            auxiliary = model.auxiliaries[model.cuts.index(i)]
            features = _plain_momentum(auxiliary.momentum, h) if model.links else h
            restored = images * model.std + model.mean
            losses.append(auxiliary.head(features, target, restored)[0])
            h = h.detach()
    logits = backbone.fc(h.mean((2, 3)))
    return [*losses, torch.nn.functional.cross_entropy(logits, target)], logits


def _plain_momentum(momentum: torch.nn.Module, h: Tensor) -> Tensor:
    scale = 1 if momentum.scale is None else momentum.scale
    return scale * momentum.bias(h) + (2 - scale) * momentum.ema(h)


@torch.no_grad()
def _plain_ema(momentum: torch.nn.Module, source: torch.nn.Module) -> None:
    for copied, followed in zip(momentum.ema.parameters(), source.parameters(), strict=True):
        copied.copy_(momentum.momentum * copied + (1 - momentum.momentum) * followed)
