"""Fine-tuning from weights of the zoo or a folder, and evaluation of whatever has weights."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from recipe import ROOT, flags, python, train_here, write_images
from safetensors.torch import load_file

from man_zoo.commands.evaluate import evaluate_weights, parse_args
from man_zoo.console import UserError
from man_zoo.hub.card import read_metadata
from man_zoo.hub.export import export_run
from man_zoo.runs import config
from man_zoo.runs.metadata import load_metadata
from man_zoo.runs.model import create_model, preprocessing_of
from man_zoo.training.optim import create_optimizers
from man_zoo.weights import read_index

DIGITS = "resnet20_man_dgl_k4.digits"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    train_here(*flags(data, output, "--epochs", "2", "--lr", "0.01"))
    return output / "run"


@pytest.fixture(scope="module")
def digits() -> dict:
    return load_file(read_index()[DIGITS].folder / "model.safetensors")


def tune(data: Path, output: Path, *words: str) -> dict:
    """Exported weights of a short fine-tuning run."""
    train_here(*flags(data, output, "--pretrained", *words))
    return load_file(output / "run" / "export" / "model.safetensors")


def test_a_run_with_held_out_images_is_measured_on_the_test_split(tmp_path) -> None:
    data = write_images(tmp_path / "data")
    words = ("--val-holdout", "6", "--lr", "0.01", "--epochs", "2")
    summary = train_here(*flags(data, tmp_path, *words))
    assert summary["count"] == 10
    result = evaluate_weights(parse_args([str(tmp_path / "run")]))
    assert {key: result[key] for key in ("top1", "count")} == {
        key: summary[key] for key in ("top1", "count")
    }
    assert json.loads((tmp_path / "run" / "metadata.json").read_text())["data"]["val_count"] == 6

    exports = [tmp_path / "run" / "export", export_run(tmp_path / "run", tmp_path / "again")]
    for folder in exports:  # by the run itself, and from the run when it has ended
        exported = read_metadata(folder)
        assert exported["validation"] == "10 test images"
        assert exported["metrics"] == {key: summary[key] for key in ("top1", "top5", "loss")}
    earlier = export_run(tmp_path / "run", tmp_path / "earlier", checkpoint="epoch-0001")
    assert read_metadata(earlier)["validation"] == "6 images"
    (tmp_path / "run" / "summary.json").unlink()  # as in a run that goes on
    assert read_metadata(export_run(tmp_path / "run", tmp_path / "on"))["validation"] == "6 images"


def test_weights_of_a_zoo_name_get_a_new_head(data, digits, tmp_path) -> None:
    tuned = tune(data, tmp_path, "--model", DIGITS, "--lr", "0")
    learnt = {name for name in digits if name.endswith(("weight", "bias"))} - {
        "fc.weight",
        "fc.bias",
    }
    assert all(torch.equal(tuned[name], digits[name]) for name in learnt)
    assert tuned["fc.weight"].shape == (3, 64)
    assert not torch.equal(tuned["bn1.running_mean"], digits["bn1.running_mean"])


@pytest.mark.parametrize("how", ["local", "end to end"])
def test_everything_learns(how, data, digits, tmp_path) -> None:
    words = [] if how == "local" else ["--method", "e2e", "--model-kwargs"]
    tuned = tune(data, tmp_path, "--model", DIGITS, "--lr", "0.01", *words)
    assert not torch.equal(tuned["conv1.weight"], digits["conv1.weight"])
    assert not torch.equal(tuned["layer3.2.conv2.weight"], digits["layer3.2.conv2.weight"])


def test_a_linear_probe_changes_the_head_alone(data, digits, tmp_path) -> None:
    probe = tune(data, tmp_path, "--model", DIGITS, "--tune", "head", "--model-kwargs")
    assert all(torch.equal(probe[n], digits[n]) for n in digits if not n.startswith("fc."))
    untouched = create_head(data, tmp_path)
    assert not torch.equal(probe["fc.weight"], untouched)


def create_head(data: Path, tmp_path: Path) -> torch.Tensor:
    """The new head before it learns: the same seed, and no learning rate."""
    words = ("--model", DIGITS, "--tune", "head", "--model-kwargs", "--lr", "0", "--overwrite")
    return tune(data, tmp_path, *words)["fc.weight"]


def test_a_folder_is_tuned_on_other_channels_by_another_method(data, run, tmp_path) -> None:
    words = ("--model", f"local-dir:{run / 'export'}", "--method", "dgl", "--k", "2")
    tuned = tune(data, tmp_path, *words, "--in-chans", "1", "--lr", "0", "--model-kwargs")
    own = load_file(run / "export" / "model.safetensors")
    torch.testing.assert_close(
        tuned["conv1.weight"], own["conv1.weight"].sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(tuned["layer3.2.conv2.weight"], own["layer3.2.conv2.weight"])


@pytest.mark.parametrize("model", ["resnet20_man_dgl_k4", "resnet20_e2e_k1", "vit_tiny"])
def test_layer_decay_lowers_the_rate_towards_the_stem(model, run) -> None:
    name = "vit_tiny_patch16_224_dgl_k2" if model == "vit_tiny" else model
    args = config.parse_args(["--model", name, "--layer-decay", "0.5", "--filter-bias-and-bn"])
    info = dataclasses.replace(load_metadata(run).data, input_size=(3, 32, 32))
    network = create_model(args, info)
    optimizers = create_optimizers(args, network, network.blocks)
    scale = {
        id(p): group["lr_scale"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    count = sum(len(g["params"]) for o in optimizers for g in o.param_groups)
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert count == len(scale) == len(trainable)
    parameters = [scale[id(p)] for p in network.backbone.parameters()]
    stem = network.backbone.patch_embed.proj if model == "vit_tiny" else network.backbone.conv1
    assert scale[id(stem.weight)] == min(parameters) < 0.5
    assert scale[id(network.backbone.get_classifier().weight)] == 1.0
    assert {scale[id(p)] for p in network.auxiliaries.parameters() if p.requires_grad} <= {1.0}


@pytest.mark.slow
def test_the_recipe_prints_one_sentence(tmp_path) -> None:
    recipe = str(ROOT / "recipes" / "finetune.py")
    words = ("--model", "resnet20_man_dgl_k10", "--output", str(tmp_path))
    result = python(recipe, *words, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "finetune.py: --model resnet20_man_dgl_k10: No pretrained weights exist"
    )
    assert not list(tmp_path.iterdir())


# Evaluation ---------------------------------------------------------------------------------------


def test_digits_score_what_their_card_says(capsys) -> None:
    result = evaluate_weights(parse_args([DIGITS]))
    metrics = read_index()[DIGITS].metrics
    # Equal on any processor: the two best logits of every image are further apart than 0.1.
    assert result["top1"] == pytest.approx(metrics["top1"], abs=1e-9)
    assert result["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    assert result["count"] == 360
    printed = capsys.readouterr().out
    assert f"top-1 {metrics['top1']:.2f} %" in printed
    rows = [line.split() for line in printed.splitlines() if re.match(r" +\d ", line)]
    assert [row[0] for row in rows] == [str(digit) for digit in range(10)]
    assert sum(int(row[4]) for row in rows) == 360
    weighted = sum(float(row[2]) * int(row[4]) for row in rows) / 360  # recall over all images
    assert 100 * weighted == pytest.approx(metrics["top1"], abs=0.02)


def test_a_run_is_scored_on_its_own_data_with_every_exit(data, run, tmp_path, capsys) -> None:
    result = evaluate_weights(parse_args([str(run), "--exits"]))
    assert "4  layer3.1 to layer3.2" in capsys.readouterr().out
    assert len(result["exits"]) == 4
    assert result["exits"][-1] == result["top1"]
    assert result["count"] == 10
    plain = evaluate_weights(parse_args([str(run)]))
    assert (plain["top1"], plain["exits"]) == (result["top1"], [result["top1"]])
    words = [str(run / "export"), "--dataset", "folder", "--data-dir", str(data)]
    exported = evaluate_weights(parse_args(words))
    assert exported["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_a_run_is_preprocessed_as_it_was_trained(data, tmp_path) -> None:
    """timm enlarges images for resnet10t in another way than the run did."""
    words = ("--model", "resnet10t", "--method", "dgl", "--k", "2", "--img-size", "16")
    summary = train_here(*flags(data, tmp_path, *words))
    scored = evaluate_weights(parse_args([str(tmp_path / "run")]))
    assert scored["loss"] == pytest.approx(summary["loss"], rel=1e-5)


def test_images_are_as_the_model_wants_them(run) -> None:
    own = preprocessing_of("resnet20", False)
    assert preprocessing_of("resnet20_man_dgl_k4", False) == own
    assert load_metadata(run).data.mean == own["mean"] == (125.3 / 255, 123 / 255, 113.9 / 255)
    assert tuple(preprocessing_of(DIGITS, True)["mean"]) == (0.5,) * 3
    config = preprocessing_of("test_vit", False)  # timm's: neither ImageNet's colours nor its size
    assert (config["mean"], config["input_size"]) == ((0.5,) * 3, (3, 160, 160))
    exported = preprocessing_of(f"local-dir:{run / 'export'}", True)
    assert exported["input_size"] == (3, 8, 8)


def test_a_batch_size_counts_whatever_a_run_was_validated_with(run, tmp_path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    text = (copy / "args.yaml").read_text()
    changed = text.replace("validation_batch_size: null", "validation_batch_size: 500")
    (copy / "args.yaml").write_text(changed)
    assert parse_args([str(copy)]).validation_batch_size == 500
    assert parse_args([str(copy), "-b", "64"]).validation_batch_size is None


def test_a_checkpoint_of_a_run_is_scored(run) -> None:
    names = ("epoch-0001", "last")
    first, last = (
        evaluate_weights(parse_args([str(run), "--checkpoint", name]))["loss"] for name in names
    )
    assert first != last


def test_weights_bring_their_preprocessing(data, run) -> None:
    export = str(run / "export")
    args = parse_args([export, "--dataset", "folder", "--data-dir", str(data)])
    evaluate_weights(args)
    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert tuple(args.input_size) == tuple(model.pretrained_cfg["input_size"]) == (3, 8, 8)
    assert tuple(args.mean) == tuple(model.pretrained_cfg["mean"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("EXPORT --dataset digits", "knows 3 classes, but scikit-learn digits"),
        ("EXPORT --exits", "--exits needs auxiliaries, and exported weights have none"),
        ("RUN --checkpoint epoch-0009", "Unknown checkpoint 'epoch-0009'"),
        ("nothing", "Unknown model"),
        ("resnet20_man_dgl_k10", "No pretrained weights exist for resnet20_man_dgl_k10"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(words, sentence, run) -> None:
    places = {"RUN": str(run), "EXPORT": str(run / "export")}
    with pytest.raises(UserError, match=sentence) as error:
        evaluate_weights(parse_args([places.get(word, word) for word in words.split()]))
    assert "\n" not in str(error.value)
