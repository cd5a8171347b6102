"""Exported weights: the folder, its card, the index, and ``pretrained=True`` by name."""

import dataclasses
import html
import json
import re
import shlex
import traceback
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt
from recipe import flags, train_here, write_images
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

import man_zoo
from man_zoo import registry
from man_zoo import weights as published
from man_zoo.commands.__main__ import main as run_command
from man_zoo.console import UserError
from man_zoo.data import open_dataset
from man_zoo.hub.card import write_card
from man_zoo.hub.export import default_tag, export_run
from man_zoo.hub.index import add_to_index
from man_zoo.runs.config import config_hash, parse_args, read_args
from man_zoo.weights import read_index

DIGITS = "resnet20_man_dgl_k4.digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two epochs, with a moving average of the weights."""
    data = write_images(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("runs")
    train_here(*flags(data, output, "--epochs", "2", "--model-ema", "--lr", "0.01"))
    return output / "run"


@pytest.fixture
def empty_hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(published, "HUB", tmp_path / "hub")
    return tmp_path / "hub"


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def weights_of(checkpoint: Path) -> dict:
    tensors = load_file(checkpoint / "model.safetensors")
    below = "backbone."
    return {k.removeprefix(below): t for k, t in tensors.items() if k.startswith(below)}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# Export -------------------------------------------------------------------------------------------


def test_the_command_exports_what_the_recipe_exported(run, tmp_path) -> None:
    assert run_command(["export", str(run), "-o", str(tmp_path / "export")]) == 0
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "export" / name).read_bytes() == (run / "export" / name).read_bytes()


@pytest.mark.parametrize("checkpoint", ["last", "epoch-0001", "best"])
def test_a_checkpoint_is_exported_without_auxiliaries(run, tmp_path, checkpoint) -> None:
    export_run(run, tmp_path / "export", checkpoint=checkpoint)
    name = {"last": "epoch-0002"}.get(checkpoint, checkpoint)
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert equal(exported, weights_of(run / "checkpoints" / name))
    assert exported.keys() == timm.create_model("resnet20").state_dict().keys()


def test_metrics_are_those_of_the_exported_epoch(run, tmp_path) -> None:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    export_run(run, tmp_path / "first", checkpoint="epoch-0001")
    metrics = read_config(tmp_path / "first")["man_zoo"]["metrics"]
    assert metrics == {key: records[0][f"val_{key}"] for key in ("top1", "top5", "loss")}
    average = read_config(run / "export-ema")["man_zoo"]["metrics"]
    assert average == {key: records[1][f"ema_val_{key}"] for key in ("top1", "top5", "loss")}
    last = load_file(run / "export" / "model.safetensors")
    assert not equal(load_file(run / "export-ema" / "model.safetensors"), last)


def test_config_is_timms_with_labels_and_preprocessing(run) -> None:
    config = read_config(run / "export")
    assert config["architecture"] == "resnet20"
    cfg = config["pretrained_cfg"]
    assert cfg["label_names"] == ["class0", "class1", "class2"]
    assert (cfg["input_size"], cfg["interpolation"], cfg["crop_mode"]) == (
        [3, 8, 8],
        "bilinear",
        "squash",
    )
    facts = config["man_zoo"]
    assert (facts["name"], facts["method"], facts["k"]) == ("resnet20_man_dgl_k4", "man_dgl", 4)
    assert facts["cuts"] == ["layer1.1", "layer2.0", "layer3.0"]


def test_metadata_says_version_name_and_the_hash_of_the_flags(run) -> None:
    with safe_open(run / "export" / "model.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["man_zoo"])
    assert metadata["version"] == man_zoo.__version__
    assert metadata["name"] == "resnet20_man_dgl_k4"
    assert metadata["config_sha256"] == config_hash(read_args(run))


def test_the_hash_is_of_what_makes_a_run_and_not_of_its_place() -> None:
    here, there, other = (
        config_hash(parse_args(words.split()))
        for words in ("--output a --workers 1", "--output b --data-dir c", "--lr 0.3")
    )
    assert here == there != other


def test_card_is_a_valid_one_and_says_what_was_measured(run) -> None:
    card = ModelCard.load(run / "export" / "README.md")
    top1 = read_config(run / "export")["man_zoo"]["metrics"]["top1"]
    assert card.data.eval_results[0].metric_value == round(top1, 2)
    assert card.data.library_name == "timm"
    for words in (
        "| method | man_dgl |",
        "| K, local blocks | 4 |",
        "layer1.1, layer2.0, layer3.0",
        f"| top-1 | {top1:.2f} % |",
        "10 images that were not trained on",
        "import man_zoo, timm",
        "timm has no resnet20",
        "2407.05623",
        "1901.08164",
        "--model-kwargs head=narrow",
        "## Licence",
    ):
        assert words in card.text, words


NASTY = (
    "a](https://evil) | <b>bold</b>",
    "`code` **bold** ![](x.png)",
    "line\n\n# Heading\n---\n&lt; $$x$$",
)


@pytest.fixture
def nasty(run, tmp_path) -> str:
    """A card of weights whose classes, data, tag and flags have names as NASTY."""
    facts = read_config(run / "export")["man_zoo"]
    facts |= {"data": NASTY[0], "dataset": NASTY[1], "tag": NASTY[2]}
    facts["recipe"] = shlex.join(["train", "--data-label", "```\n\n# Not a heading\n```"])
    facts["machine"] |= {"cpu": NASTY[0]}
    write_card(tmp_path / "README.md", facts, "resnet20", [*NASTY, "caf\udce9", "\x1b[31mred"])
    return (tmp_path / "README.md").read_text()


def test_names_of_others_are_words_in_a_card_and_nothing_else(nasty, run) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(nasty).text)
    plain = (run / "export" / "README.md").read_text()
    expected = MarkdownIt("commonmark").enable("table").parse(ModelCard(plain).text)
    assert [one.type for one in tokens] == [one.type for one in expected]
    inline = [part for token in tokens for part in token.children or ()]
    assert {one.type for one in inline} <= {"text", "text_special", "code_inline", "softbreak"}
    shown = MarkdownIt("commonmark").enable("table").render(ModelCard(nasty).text)
    for name in NASTY:
        assert html.escape(" ".join(name.split())) in shown
    assert "caf, [31mred." in shown


def test_names_of_others_do_not_reach_the_cards_data(nasty) -> None:
    data = ModelCard(nasty).data
    assert data.license == "apache-2.0"
    assert data.model_name == f"resnet20_man_dgl_k4.{' '.join(NASTY[2].split())}"
    assert data.eval_results[0].dataset_name == NASTY[0]


def test_card_has_no_path_of_the_machine(run, tmp_path) -> None:
    assert str(run.parent) not in (run / "export" / "README.md").read_text()
    assert str(run.parent) not in (run / "export" / "config.json").read_text()


def test_a_network_of_timms_own_needs_no_man_zoo(tmp_path) -> None:
    data = write_images(tmp_path / "data")
    train_here(*flags(data, tmp_path, "--model", "resnet18", "--model-kwargs"))
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "Plain timm is enough" in card
    assert "import timm\n" in card
    assert "trained end to end" in card


@pytest.mark.parametrize(
    ("words", "tag"),
    [
        ("--dataset cifar10", "cifar10"),
        ("--dataset hfds/uoft-cs/CIFAR-100", "cifar_100"),
        ("--dataset folder --data-dir some/Birds/", "birds"),
    ],
)
def test_a_tag_is_the_data_set(words, tag) -> None:
    assert default_tag(parse_args(words.split())) == tag


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUN"], "export is there already; --force replaces it."),
        (["RUN", "--checkpoint", "epoch-0003"], "Unknown checkpoint 'epoch-0003'; expected last"),
        (["nowhere"], "nowhere: there is no run"),
        (["RUN", "--output", "KEPT", "--force"], "is no exported folder, so it is not replaced."),
    ],
)
def test_export_refuses_in_a_sentence(run, tmp_path, capsys, words, sentence) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").touch()
    before = (run / "export" / "README.md").stat()
    places = {"RUN": str(run), "KEPT": str(kept)}
    words = [places.get(word, word) for word in words]
    if "--checkpoint" in words:
        words += ["--output", str(tmp_path / "export")]
    assert run_command(["export", *words]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error
    assert [path.name for path in kept.iterdir()] == ["thesis.tex"]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (run / "export" / "README.md").stat() == before


def test_an_export_that_fails_leaves_the_old_one(run, tmp_path, monkeypatch) -> None:
    folder = export_run(run, tmp_path / "export")
    before = (folder / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("man_zoo.hub.export.write_card", full)
    with pytest.raises(OSError, match="no space"):
        export_run(run, folder, checkpoint="epoch-0001", force=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_run_without_averages_has_none_to_export(tmp_path) -> None:
    data = write_images(tmp_path / "data")
    train_here(*flags(data, tmp_path))
    with pytest.raises(UserError, match="has no moving average; train with --model-ema"):
        export_run(tmp_path / "run", tmp_path / "ema", ema=True)
    assert not (tmp_path / "ema").exists()


# Index --------------------------------------------------------------------------------------------


def test_an_export_is_put_into_the_index(run, empty_hub) -> None:
    weights = add_to_index(run / "export")
    assert read_index() == {weights.title: weights}
    assert weights.metrics == read_config(run / "export")["man_zoo"]["metrics"]
    names = {path.name for path in (empty_hub / weights.title).iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}
    again = add_to_index(run / "export", "someone/weights", "0" * 40)
    assert read_index() == {again.title: again}
    assert {path.name for path in empty_hub.iterdir()} == {"index.json", weights.title}


def test_an_installed_package_is_not_written_into(run, empty_hub, monkeypatch) -> None:
    monkeypatch.setattr(published, "PACKAGE", empty_hub.parent)
    with pytest.raises(UserError, match="that is one of a checkout of man_zoo, and"):
        add_to_index(run / "export")
    assert not empty_hub.exists()


def test_heavy_weights_stay_out_of_the_checkout(run, empty_hub, monkeypatch) -> None:
    monkeypatch.setattr("man_zoo.hub.index.SMALL", 1000)
    weights = add_to_index(run / "export")
    assert {path.name for path in weights.folder.iterdir()} == {"README.md", "config.json"}
    assert not weights.can_be_loaded
    assert dataclasses.replace(weights, repository="someone/weights").can_be_loaded


def test_the_index_of_the_checkout_is_true() -> None:
    for weights in read_index().values():
        facts = read_config(weights.folder)["man_zoo"]
        assert weights.title == f"{facts['name']}.{facts['tag']}"
        assert weights.metrics == facts["metrics"]
        assert weights.fetch().stat().st_size == weights.size
        assert weights.size < published.SMALL


# pretrained=True ----------------------------------------------------------------------------------


def digits_top1(model, images, target) -> str:
    """Top-1 in percent, as a card says it, through timm's own transform."""
    transform = create_transform(**resolve_model_data_config(model))
    batch = torch.stack([transform(image.convert("RGB")) for image in images])
    with torch.no_grad():
        hits = model.eval()(batch).argmax(1) == target
    return f"{100 * hits.double().mean().item():.2f}"


def test_digits_have_the_accuracy_on_their_card() -> None:
    splits, _, _ = open_dataset(parse_args([]), "RGB")
    images, target = zip(*splits.val, strict=True)
    model = timm.create_model(DIGITS, pretrained=True)
    card = (read_index()[DIGITS].folder / "README.md").read_text()
    said = re.search(r"\| top-1 \| (.+) % \|", card)
    assert said is not None
    assert digits_top1(model, images, torch.tensor(target)) == said[1]
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    assert not list(model.auxiliaries)


def test_untrained_is_the_backbones_own_network() -> None:
    model = timm.create_model("resnet20_man_dgl_k4")
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert not torch.equal(model.fc.weight, timm.create_model(DIGITS, pretrained=True).fc.weight)


def test_pretrained_takes_timms_keywords() -> None:
    own = timm.create_model(DIGITS, pretrained=True)
    other = timm.create_model(DIGITS, pretrained=True, num_classes=7, in_chans=1).eval()
    assert other(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    assert torch.equal(other.layer3[2].conv2.weight, own.layer3[2].conv2.weight)
    torch.testing.assert_close(other.conv1.weight, own.conv1.weight.sum(1, keepdim=True))

    features = timm.create_model(DIGITS, pretrained=True, features_only=True).eval()
    images = torch.randn(2, 3, 16, 16)
    last = features(images)[-1]
    assert last.shape == (2, 64, 4, 4)
    assert torch.equal(last, own.eval().forward_features(images))

    trains = timm.create_model(DIGITS, pretrained=True, auxiliaries=True, img_size=24).train()
    assert trains.local_step(torch.randn(4, 3, 24, 24), torch.arange(4)).losses.shape == (4,)


def test_timm_lists_only_what_can_be_loaded() -> None:
    ours = [name for name in timm.list_models(pretrained=True) if "man_dgl" in name]
    assert ours == [title for title in read_index() if "man_dgl" in title]
    assert timm.is_model_pretrained(DIGITS)
    assert not timm.is_model_pretrained("resnet20_man_dgl_k10")


def test_the_command_lists_weights_with_their_accuracy(capsys) -> None:
    assert run_command(["list", "resnet20_man_dgl*", "--pretrained"]) == 0
    top1 = read_index()[DIGITS].metrics["top1"]
    assert f"{DIGITS}  {top1:.2f} %  here" in capsys.readouterr().out.splitlines()
    run_command(["list", "resnet20_man_dgl*"])
    assert capsys.readouterr().out.split() == ["resnet20_man_dgl_k4", "resnet20_man_dgl_k10"]


def test_no_weights_is_timms_error_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist") as error:
        timm.create_model("resnet101_man_infopro_k4", pretrained=True)
    said = str(error.value)
    assert "man-zoo train --model resnet101_man_infopro_k4" in said
    assert "man-zoo list --pretrained" in said
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(cifar\)"):
        timm.create_model("resnet20_man_dgl_k4.cifar", pretrained=True)


@pytest.mark.parametrize("heavy", [True, False])
def test_indexed_weights_that_are_nowhere_near_say_where_they_are(
    run, empty_hub, monkeypatch, heavy
) -> None:
    if heavy:
        monkeypatch.setattr("man_zoo.hub.index.SMALL", 1000)
        monkeypatch.setattr("man_zoo.weights.SMALL", 1000)
    weights = add_to_index(run / "export")
    (weights.folder / "model.safetensors").unlink(missing_ok=True)
    monkeypatch.setattr(registry, "index", read_index())
    cfg = weights.arguments()["pretrained_cfg"]
    with pytest.raises(RuntimeError) as error:
        timm.create_model("resnet20_man_dgl_k4", pretrained=True, pretrained_cfg=cfg)
    where = "who made them has yet to push them" if heavy else f"they are hub/{weights.title}/"
    assert f"The weights of {weights.title} are not in this installation" in str(error.value)
    assert where in str(error.value)
    assert timm.create_model("resnet20_man_dgl_k4", pretrained_cfg=cfg).num_classes == 3


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_weights_are_refused(run, empty_hub, monkeypatch, damage) -> None:
    weights = add_to_index(run / "export")
    monkeypatch.setattr(registry, "index", read_index())
    file = weights.folder / "model.safetensors"
    data = file.read_bytes()
    altered = data[:-1] + bytes([data[-1] ^ 1])
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else altered)
    cfg = weights.arguments()["pretrained_cfg"]
    with pytest.raises(RuntimeError, match="cut short or altered; delete it and get it again"):
        timm.create_model("resnet20_man_dgl_k4", pretrained=True, pretrained_cfg=cfg)
    file.write_bytes(data)
    assert timm.create_model("resnet20_man_dgl_k4", pretrained=True, pretrained_cfg=cfg)


def test_a_hub_that_cannot_be_reached_is_a_sentence(run, empty_hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")
    monkeypatch.setattr("man_zoo.hub.index.SMALL", 1000)
    weights = add_to_index(run / "export", "me/far", "0" * 40)
    monkeypatch.setattr(registry, "index", read_index())
    cfg = weights.arguments()["pretrained_cfg"]
    with pytest.raises(RuntimeError) as error:
        timm.create_model(
            "resnet20_man_dgl_k4", pretrained=True, pretrained_cfg=cfg, cache_dir=str(tmp_path)
        )
    said = str(error.value)
    assert "\n" not in said
    assert "secret" not in "".join(traceback.format_exception(error.value))
    assert "could not be fetched from http://127.0.0.1:9/me/far (" in said
    assert "check the network, HF_ENDPOINT and HF_TOKEN, or train them: man-zoo train" in said


def test_weights_of_the_callers_own_are_loaded_as_given(run) -> None:
    file = str(run / "export" / "model.safetensors")
    model = timm.create_model(
        DIGITS, pretrained=True, num_classes=3, pretrained_cfg_overlay={"file": file}
    )
    assert torch.equal(model.conv1.weight, load_file(file)["conv1.weight"])


def test_localize_takes_a_folder(run) -> None:
    name = f"local-dir:{run / 'export'}"
    model = man_zoo.localize(name, "dgl", k=2, pretrained=True, auxiliaries=True).eval()
    plain = timm.create_model(name, pretrained=True).eval()
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 8, 8))).float()
    assert torch.equal(model(images), plain(images))
    assert (len(model.blocks), model.spec.name) == (2, "resnet20_dgl_k2")
