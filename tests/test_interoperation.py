"""Exported weights elsewhere: in plain timm without man_zoo, from a Hub, as ONNX, as torch.export.

The Hub is olah, a real one, offline on loopback, serving the git repositories that a push made.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from loopback_hub import TOKEN, loopback_hub
from recipe import ROOT, flags, train_here, write_images
from safetensors.torch import load_file, save_file

from man_zoo import weights as published
from man_zoo.commands.__main__ import main as run_command
from man_zoo.data import LoaderInfo
from man_zoo.hub.export import export_run
from man_zoo.runs.checksums import write_checksums
from man_zoo.runs.config import parse_args, save_args
from man_zoo.runs.metadata import save_metadata
from man_zoo.runs.model import create_model

# A network of timm's own, in a family that man_zoo knows, and small.
NETWORK = ("--model", "resnet10t", "--method", "man_dgl", "--k", "2", "--model-kwargs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The export of a model that was trained for a moment."""
    data = write_images(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("runs")
    train_here(*flags(data, output, *NETWORK))
    return output / "run" / "export"


def publish(folder: Path, repository: str, root: Path, monkeypatch) -> None:
    """Push to a Hub on loopback that keeps its repositories in ``root``; the index is ``HUB``."""
    with loopback_hub(root) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert run_command(["push", str(folder), "--repo", repository]) == 0


@contextmanager
def olah(root: Path) -> Iterator[str]:
    """The endpoint of an olah server, offline, of the git repositories under ``root``."""
    pytest.importorskip("olah")
    for _ in range(5):  # the port may be taken between our choice and olah's start
        server, endpoint = start_olah(root)
        try:
            if answers(server, endpoint):
                yield endpoint
                return
        finally:
            server.terminate()
            server.wait()
    raise AssertionError((root / "olah.log").read_text())


def start_olah(root: Path) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = root / "olah.toml"
    config.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{root / "cache"}"\n'
        f'mirrors-path = ["{root}"]\n\n[accessibility]\noffline = true\n'
    )
    command = [sys.executable, "-m", "olah.server", "--config", str(config)]
    with (root / "olah.log").open("w") as log:
        server = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
    return server, f"http://127.0.0.1:{port}"


def answers(server: subprocess.Popen, endpoint: str) -> bool:
    """Wait until a server answers; not for ever, and not if it has ended."""
    for _ in range(3000):
        if server.poll() is not None:
            return False
        try:
            urllib.request.urlopen(endpoint, timeout=1)
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def run_python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"} | environment,
        cwd=Path(environment["HF_HOME"]),
        capture_output=True,
        text=True,
        check=False,
    )


def libraries() -> str:
    """The installed libraries as a PYTHONPATH.

    With ``python -S`` no .pth file is read, so an editable install of man_zoo is not seen.
    """
    return os.pathsep.join(path for path in sys.path if path.endswith("-packages"))


ELSEWHERE = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
try:
    import man_zoo
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("man_zoo is here")
torch.set_num_threads(1)
name, images, logits = sys.argv[1:]
model = timm.create_model(name, pretrained=True).eval()
with torch.no_grad():
    save_file({"logits": model(load_file(images)["images"])}, logits)
print(model.pretrained_cfg["label_names"], type(model).__module__)
"""


def logits_elsewhere(name: str, images: torch.Tensor, place: Path, **environment: str):
    """Logits of a model that timm loads by name where there is no man_zoo."""
    save_file({"images": images}, place / "images.safetensors")
    files = [str(place / f"{file}.safetensors") for file in ("images", "logits")]
    result = run_python(
        ELSEWHERE, name, *files, PYTHONPATH=libraries(), HF_HOME=str(place), **environment
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "['class0', 'class1', 'class2'] timm.models.resnet"
    return load_file(files[1])["logits"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits_here(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """Of the backbone that was trained, without a look at the exported files."""
    checkpoint = load_file(folder.parent / "checkpoints" / "epoch-0001" / "model.safetensors")
    below = "backbone."
    model = timm.create_model("resnet10t", num_classes=3).eval()
    model.load_state_dict(
        {k.removeprefix(below): t for k, t in checkpoint.items() if k.startswith(below)}
    )
    with torch.no_grad():
        return model(images)


@pytest.mark.slow
def test_plain_timm_loads_the_folder(folder, images, tmp_path) -> None:
    elsewhere = logits_elsewhere(f"local-dir:{folder}", images, tmp_path, HF_HUB_OFFLINE="1")
    assert torch.equal(elsewhere, logits_here(folder, images))


@pytest.mark.slow
def test_plain_timm_loads_from_a_hub(folder, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(published, "HUB", tmp_path / "hub")
    publish(folder, "me/moment", tmp_path, monkeypatch)
    with olah(tmp_path) as endpoint:
        elsewhere = logits_elsewhere("hf-hub:me/moment", images, tmp_path, HF_ENDPOINT=endpoint)
    assert torch.equal(elsewhere, logits_here(folder, images))


ZOO_NAME = "resnet101_man_infopro_k4"
BY_NAME = f"""
import sys, timm, torch
import man_zoo
from safetensors.torch import load_file
model = timm.create_model("{ZOO_NAME}", pretrained=True)
here = load_file(sys.argv[1])
there = model.backbone.state_dict()
assert here.keys() == there.keys()
assert all(torch.equal(here[name], there[name]) for name in here)
assert timm.list_models("resnet101_man*", pretrained=True) == ["{ZOO_NAME}.folder"]
"""


def untrained_run(run: Path) -> Path:
    """A run folder as the recipe leaves it, of a large network that took no time to train."""
    args = parse_args(["--model", ZOO_NAME, "--data-dir", "folder", "--dataset", "folder"])
    data = LoaderInfo(
        name="images in folder at 32x32",
        num_classes=3,
        class_names=("a", "b", "c"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        input_size=(3, 32, 32),
        interpolation="bilinear",
        crop_pct=1.0,
        crop_mode="squash",
        in_memory=True,
        train_count=3,
        val_count=3,
    )
    checkpoint = run / "checkpoints" / "epoch-0001"
    checkpoint.mkdir(parents=True)
    save_args(args, run / "args.yaml")
    save_metadata(run, data, torch.device("cpu"))
    record = {"epoch": 1, "seconds": 1.0, "val_top1": 30.0, "val_top5": 100.0, "val_loss": 1.0}
    (run / "log.jsonl").write_text(json.dumps(record) + "\n")
    backbone = create_model(args, data, auxiliaries=False).backbone
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_file(tensors, checkpoint / "model.safetensors")
    write_checksums(checkpoint)
    return run


@pytest.mark.slow
def test_a_zoo_name_loads_from_a_hub(tmp_path, monkeypatch) -> None:
    """In a checkout of its own, whose index has what was pushed: too heavy to be in ``hub/``."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "man_zoo").symlink_to(ROOT / "man_zoo")
    monkeypatch.setattr(published, "HUB", checkout / "hub")
    folder = export_run(untrained_run(tmp_path / "run"))
    publish(folder, "me/large", tmp_path, monkeypatch)
    entry = checkout / "hub" / f"{ZOO_NAME}.folder"
    assert {path.name for path in entry.iterdir()} == {"README.md", "config.json"}

    paths = f"{checkout}{os.pathsep}{libraries()}"
    weights = str(folder / "model.safetensors")
    with olah(tmp_path) as endpoint:
        loaded = run_python(
            BY_NAME, weights, PYTHONPATH=paths, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint
        )
    assert loaded.returncode == 0, loaded.stderr[-2000:]


def exported(folder: Path) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.slow
def test_an_export_is_exported_by_torch(folder, images, tmp_path) -> None:
    program = torch.export.export(exported(folder), (images,))
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(again(images), logits_here(folder, images))


@pytest.mark.slow
def test_an_export_becomes_onnx(folder, images, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    path = tmp_path / "model.onnx"
    torch.onnx.export(exported(folder), (images,), path, dynamo=True, input_names=["images"])
    onnx.checker.check_model(path, full_check=True)
    (logits,) = reference.ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(logits), logits_here(folder, images), rtol=1e-3, atol=1e-4
    )
