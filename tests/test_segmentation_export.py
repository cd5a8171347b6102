"""What is exported of a dense network loads where man_zoo is not, and gives the same prediction."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import man_zoo
from man_zoo.hub.network import save_network

DEEPLAB = """
decoder = DeepLabHead(backbone.num_features, 5)
decoder.load_state_dict(load_file("decoder.safetensors"))
low = decoder.eval()(backbone.forward_features(images))
"""
PYRAMID = """
backbone = timm.create_model(
    "test_resnet", features_only=True, out_indices=(1, 2, 3, 4), checkpoint_path="model.safetensors"
).eval()
pyramid = FeaturePyramidNetwork(backbone.feature_info.channels(), 256).eval()
weights = load_file("decoder.safetensors")
pyramid.load_state_dict(
    {k.removeprefix("pyramid."): v for k, v in weights.items() if k.startswith("pyramid.")}
)
maps = pyramid({str(i): x for i, x in enumerate(backbone(images))})
levels = []
for i, x in enumerate(maps.values()):
    x = F.conv2d(x, weights[f"levels.{i}.0.weight"], padding=1)
    x = F.group_norm(x, 32, weights[f"levels.{i}.1.weight"], weights[f"levels.{i}.1.bias"]).relu()
    levels.append(F.interpolate(x, maps["0"].shape[2:], mode="bilinear"))
low = F.conv2d(sum(levels), weights["classifier.weight"], weights["classifier.bias"])
"""
SCRIPT = """
import sys
import timm, torch, torch.nn.functional as F
from safetensors.torch import load_file
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.ops import FeaturePyramidNetwork

given = load_file("given.safetensors")
images = given["images"]
backbone = timm.create_model(
    "test_resnet", num_classes=0, checkpoint_path="model.safetensors", **OPTIONS
).eval()
with torch.no_grad():
    DECODE
    logits = F.interpolate(low, images.shape[2:], mode="bilinear")
assert "man_zoo" not in sys.modules
assert torch.allclose(logits, given["logits"], atol=1e-5), (logits - given["logits"]).abs().max()
"""


@pytest.mark.parametrize(
    ("decoder", "decode", "options"),
    [("deeplabv3", DEEPLAB, {"output_stride": 8}), ("fpn", PYRAMID, {})],
)
def test_backbone_and_decoder_load_without_man_zoo(decoder, decode, options, tmp_path) -> None:
    torch.manual_seed(0)
    model = man_zoo.localize(
        "test_resnet", "man_dgl", 2, task="segmentation", num_classes=5, decoder=decoder,
        img_size=64, **options,
    )  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    model.train().local_step(images, torch.randint(5, (2, 64, 64)))  # statistics of norms move
    with torch.no_grad():
        logits = model.eval()(images)
    save_network(model, tmp_path, {"name": model.spec.name})
    save_file({"images": images, "logits": logits}, tmp_path / "given.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decoder.safetensors", "given.safetensors", "model.safetensors",
    ]  # fmt: skip
    script = SCRIPT.replace("OPTIONS", repr(options)).replace(
        "    DECODE", "\n".join(f"    {line}" for line in decode.strip().splitlines())
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
