"""The training recipe: its flags, its features, what it leaves behind, how it fails."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from recipe import ROOT, flags, python, train_here, write_images
from safetensors.torch import load_file
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy

from man_zoo.commands import evaluate
from man_zoo.console import UserError
from man_zoo.data import StreamLoader
from man_zoo.parallel.places import Places
from man_zoo.runs.config import parse_args, read_args, save_args
from man_zoo.runs.flags import build_parser
from man_zoo.runs.folder import load_epoch, load_log
from man_zoo.tasks import Classification
from man_zoo.training.losses import NonFiniteLoss, check_weights
from man_zoo.training.trainer import create_mixup


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture
def run(data, tmp_path):
    """Run the recipe with more flags; its summary."""
    return lambda *more: train_here(*flags(data, tmp_path, *more))


# Flags and YAML


def write_yaml(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_command_line_wins_over_yaml_over_defaults(tmp_path):
    path = write_yaml(tmp_path, "lr: 0.5\nepochs: 7\n")
    args = parse_args(["--lr", "0.25", "-c", path])
    assert (args.lr, args.epochs, args.momentum) == (0.25, 7, 0.9)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("weight-decay: 1e-3", "weight_decay", 1e-3),  # a string to YAML
        ("weight_decay: 0.5", "weight_decay", 0.5),
        ("mixed-precision: no", "mixed_precision", "no"),  # a boolean to YAML 1.1
        ("in-memory: off", "in_memory", "off"),
        ("channels-last: false", "channels_last", False),
        ("model-ema: true", "model_ema", True),
        ("model-ema: false", "model_ema", False),
        ("scale: [0.5, 1]", "scale", [0.5, 1.0]),
        ("cuts: [layer1.0, layer2.1]", "cuts", ["layer1.0", "layer2.1"]),
        ("cuts: even", "cuts", ["even"]),
        ("method: null", "method", None),
        ("model-kwargs: {head: narrow, lambda1: [5, 0.2], bias: false}", "model_kwargs",
         {"head": "narrow", "lambda1": [5, 0.2], "bias": False}),
    ],
)  # fmt: skip
def test_yaml_values(text, key, value, tmp_path):
    assert vars(parse_args(["-c", write_yaml(tmp_path, text)]))[key] == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lr: fast", "argument --lr: expected a number from 0, got 'fast'."),
        ("learning-rate: 1", "Unknown key 'learning-rate'; expected one of .* The nearest is"),
        ("epochs: [1, 2]", "argument --epochs: expected a whole number from 1, got '\\[1, 2\\]'."),
        ("epochs: 0", "argument --epochs: expected a whole number from 1, got '0'."),
        ("model-ema: 3", "--model-ema is true or false, not 3."),
        ("opt-kwargs: 3", "--opt-kwargs is a mapping such as {key: value}, not 3."),
        ("resume: runs/x", "Unknown key 'resume'; expected one of"),
        ("config: base.yaml", "Unknown key 'config'; expected one of"),
        ("mixed-precision: fp4", "argument --mixed-precision: invalid choice: 'fp4'"),
        ("- lr", "is no list of flags; expected lines such as 'lr: 0.1'."),
        ("lr: [", "config.yaml is not YAML: "),
    ],
)
def test_wrong_yaml_is_one_sentence(text, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        parse_args(["-c", write_yaml(tmp_path, text)])


def test_a_config_wins_over_its_base_and_over_those_before_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "base.yaml").write_text("lr: 1\nepochs: 1\nseed: 1\nbatch-size: 1\n")
    cell = write_yaml(tmp_path / "data", "base: ../base.yaml\nepochs: 2\nseed: 2\nbatch-size: 2\n")
    over = tmp_path / "over.yaml"
    over.write_text("seed: 3\nbatch-size: 3\n")
    args = parse_args(["-c", cell, str(over), "--batch-size", "4"])
    assert (args.lr, args.epochs, args.seed, args.batch_size) == (1, 2, 3, 4)


def test_what_a_base_switches_on_can_be_switched_off(tmp_path):
    (tmp_path / "base.yaml").write_text("model-ema: true\nval_holdout: 10\nlr: 1\n")
    top = "base: base.yaml\nmodel_ema: false\nval-holdout: null\n"
    args = parse_args(["-c", write_yaml(tmp_path, top)])
    assert (args.model_ema, args.val_holdout, args.lr) == (False, None, 1)
    off, on = tmp_path / "off.yaml", tmp_path / "base.yaml"
    off.write_text("model-ema: false\n")
    assert not parse_args(["-c", str(on), "-c", str(off)]).model_ema
    assert parse_args(["-c", str(off), "-c", str(on)]).model_ema


def test_booleans_of_keywords_are_booleans_however_they_are_written():
    words = ["ema=false", "bias=True", "scale=TRUE", "head=narrow", "m=0.5"]
    assert parse_args(["--model-kwargs", *words]).model_kwargs == {
        "ema": False, "bias": True, "scale": True, "head": "narrow", "m": 0.5,
    }  # fmt: skip


def test_a_run_that_goes_on_keeps_the_precision_that_its_launcher_chose(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train_here(*flags(data, tmp_path, "--lr", "0.01"))
    assert read_args(tmp_path / "run").mixed_precision == "bf16"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    train_here("--resume", str(tmp_path / "run"), "--epochs", "2")
    assert AcceleratorState().mixed_precision == "bf16"


def test_files_of_several_flags_are_all_read(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("lr: 1\nepochs: 1\n")
    second.write_text("epochs: 2\n")
    args = parse_args(["-c", str(first), "--seed", "3", "-c", str(second)])
    assert (args.lr, args.epochs, args.seed) == (1, 2, 3)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("none.yaml", r"none\.yaml: no such file"),
        ("[a, b]", "no such file"),
        ("config.yaml", r"config\.yaml is a base of itself"),
    ],
)
def test_a_wrong_base_is_one_sentence(base, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        parse_args(["-c", write_yaml(tmp_path, f"base: {base}")])


def test_saved_flags_are_a_config(tmp_path):
    words = ["--cuts", "layer1.0", "--opt-kwargs", "eps=1e-3", "--mixed-precision", "no"]
    args = parse_args([*words, "--no-channels-last", "--mean", "0.5", "0.5", "0.5", "--overwrite"])
    save_args(args, tmp_path / "args.yaml")
    again = parse_args(["-c", str(tmp_path / "args.yaml")])
    for namespace in (args, again):
        del namespace.config, namespace.overwrite
    assert again == args


def test_every_flag_has_a_yaml_default():
    assert yaml.safe_dump(vars(build_parser().parse_args([])))


# Features


FEATURES = {
    "accumulation and clipping": "--grad-accum-steps 2 --clip-grad 1",
    "bfloat16": "--mixed-precision bf16",
    "mixup, cutmix, smoothing": "--mixup 0.5 --cutmix 1 --smoothing 0.1 --model-ema",
    "mixup and predsim": "--model resnet20_man_predsim_k4 --model-kwargs --mixup 0.5",
    "contrast": "--model resnet20_infopro_k4 --model-kwargs local_loss=contrast",
    "adamw, steps": "--opt adamw --sched step --sched-kwargs decay_epochs=1 decay_rate=0.5",
    "adan": "--opt adan --sched poly --opt-kwargs eps=1e-6 --filter-bias-and-bn",
    "lion": "--opt lion --lr 0.001 --sched constant",
    "muon": "--opt muon --lr 0.001 --sched wsd",
    "end to end": "--model resnet20 --model-kwargs",
    "named cuts": "--model resnet20 --method dgl --k 3 --model-kwargs --cuts layer1.0 layer2.1",
    "paper form": "--form paper --man-momentum 0.9",
}


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
def test_features_train(feature, run):
    summary = run(*FEATURES[feature].split())
    assert summary["epochs"] == 1
    assert all(loss < 20 for loss in summary["losses"])
    assert len(summary["exits"]) == len(summary["losses"])


def test_every_unit_a_block(run):
    assert len(run("--model", "resnet20", "--method", "dgl", "--k", "10")["exits"]) == 10


def test_features_between_blocks_stay_bfloat16(data, tmp_path, monkeypatch):
    seen = []
    from man_zoo.local_block import LocalBlock

    forward = LocalBlock.forward

    def watched(self, features, *rest):
        out = forward(self, features, *rest)
        seen.append((features.dtype, out[1].dtype))
        return out

    monkeypatch.setattr(LocalBlock, "forward", watched)
    train_here(*flags(data, tmp_path, "--mixed-precision", "bf16"))
    assert [kind for kind, _ in seen[:4]] == [torch.float32] + 3 * [torch.bfloat16]
    assert {kind for _, kind in seen} == {torch.float32}


def test_smoothing_of_mixed_targets_is_timms():
    import numpy as np

    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    model = Namespace(auxiliaries=[], task=Classification(3))
    ours = create_mixup(parse_args(["--mixup", "1", "--batch-size", "4"]), model)
    np.random.seed(0)
    _, mixed = ours(torch.randn(4, 3, 8, 8), target)
    np.random.seed(0)
    _, smooth = Mixup(1.0, label_smoothing=0.1, num_classes=3)(torch.randn(4, 3, 8, 8), target)
    torch.testing.assert_close(
        torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, mixed),
        SoftTargetCrossEntropy()(logits, smooth),
    )


# What a run leaves behind


@pytest.mark.slow
def test_run_folder(data, tmp_path, capsys):
    train_here(*flags(data, tmp_path, "--epochs", "4", "--checkpoint-hist", "1", "--lr", "0.01"))
    run = tmp_path / "run"
    printed = capsys.readouterr()
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records] == [6, 12, 18, 24]
    tops = [record["val_top1"] for record in records]
    best = f"epoch-{tops.index(max(tops)) + 1:04d}"
    assert (run / "checkpoints" / "best").readlink() == Path(best)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best", best, "epoch-0004"}
    assert list((run / "tensorboard").glob("events.*"))
    assert "4  layer3.1 to layer3.2" in printed.out
    assert printed.out.count("epoch   ") == 4
    assert "\r" not in printed.err  # no terminal here: lines
    assert "100%" in printed.err


def test_epochs_between_validations_are_trained_and_saved_alone(data, tmp_path, capsys):
    train_here(*flags(data, tmp_path, "--epochs", "3", "--val-interval", "2", "--lr", "0.01"))
    run = tmp_path / "run"
    records = load_log(run)
    assert ["val_top1" in record for record in records] == [False, True, True]
    assert capsys.readouterr().out.count("val top-1 ") == 2
    assert {"epoch-0002", "epoch-0003", "best"} <= {p.name for p in (run / "checkpoints").iterdir()}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_epoch"] in (2, 3)
    assert summary["seconds"] == sum(record["seconds"] for record in records)
    with pytest.raises(UserError, match="was not validated after epoch 1; expected 'best'"):
        load_epoch(run, 1)


def test_validation_counts_every_image_of_a_stream_that_is_longer_than_it_says(
    run, tmp_path, monkeypatch
):
    length = StreamLoader.__len__
    short = lambda loader: length(loader) - (not loader.train)  # noqa: E731
    monkeypatch.setattr(StreamLoader, "__len__", short)
    run("--in-memory", "off", "--workers", "0")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["count"] == 10


def test_an_epoch_is_whole_updates(run, tmp_path):
    """Of six batches the last two make no update of four, and are not left to the next epoch."""
    run("--grad-accum-steps", "4", "--epochs", "3")
    assert [line["step"] for line in load_log(tmp_path / "run")] == [1, 2, 3]


def test_a_run_that_goes_on_is_not_finished(data, tmp_path, monkeypatch):
    train_here(*flags(data, tmp_path))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 1
    monkeypatch.setattr("man_zoo.training.train.train_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_here("--resume", str(tmp_path / "run"), "--epochs", "2")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_bar_shows_losses_and_time_left(data, tmp_path, monkeypatch):
    shown = []
    from man_zoo.training.bar import TrainingBar

    advance = TrainingBar.advance

    def watched(self):
        advance(self)
        shown.append(str(self.bar))

    monkeypatch.setattr(TrainingBar, "advance", watched)
    train_here(*flags(data, tmp_path))
    assert all("loss " in line and ".." in line and "images/s" in line for line in shown)
    assert all("<" in line for line in shown)


@pytest.mark.parametrize("model", ["resnet20_man_dgl_k4", "resnet18"])
def test_export_is_the_trained_backbone(model, run, tmp_path):
    run("--model", model, *(["--model-kwargs"] if model == "resnet18" else []))
    folder = tmp_path / "run"
    exported = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True)
    config = json.loads((folder / "export" / "config.json").read_text())
    assert config["architecture"] == model.split("_")[0]
    assert config["pretrained_cfg"]["label_names"] == ["class0", "class1", "class2"]

    trained = load_file(folder / "checkpoints" / "epoch-0001" / "model.safetensors")
    backbone = timm.create_model(model.split("_")[0], num_classes=3)
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in trained.items() if k.startswith("backbone.")}
    )
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(exported.eval()(images), backbone.eval()(images))


def test_exports_score_what_the_run_measured_of_weights_and_average(run, data, tmp_path):
    run("--model-ema", "--model-ema-decay", "0.5")
    [record] = load_log(tmp_path / "run")
    assert record["val_loss"] != pytest.approx(record["ema_val_loss"], rel=1e-3)
    for export, prefix in (("export", "val"), ("export-ema", "ema_val")):
        words = [str(tmp_path / "run" / export), "--dataset", "folder", "--data-dir", str(data)]
        scores = evaluate.evaluate_weights(evaluate.parse_args(words))
        assert scores["loss"] == pytest.approx(record[f"{prefix}_loss"], rel=1e-5)


# How it fails


WRONG = {
    "model": ("--model resnet2", "Unknown backbone 'resnet2'"),
    "method": ("--model resnet20 --method dlg --k 4", "Unknown method 'dlg'"),
    "k": ("--model resnet20_dgl_k40 --model-kwargs", "k=40 is impossible for resnet20"),
    "cut": ("--cuts layer9.0", "Unknown cut 'layer9.0'"),
    "keyword": ("--model resnet20 --model-kwargs colour=red", "does not take either 'colour'"),
    "optimizer": ("--opt sdg", "Unknown optimizer 'sdg'; expected one of"),
    "second order": ("--opt adahessian", "needs second derivatives"),
    "optimizer keyword": ("--opt adamw --opt-kwargs colour=red", "unexpected keyword"),
    "schedule": ("--sched plateau", "Unknown schedule 'plateau'"),
    "schedule keyword": ("--sched-kwargs colour=red", "unexpected keyword"),
    "schedule value": (
        "--sched step --epochs 9 --warmup-epochs 2 --sched-kwargs decay_epochs=0",
        "--sched step with --sched-kwargs: ",
    ),
    "data": ("--data-dir nowhere", "nowhere is not a directory"),
    "precision": ("--mixed-precision fp16", "fp16 is not for the CPU; expected bf16 or no"),
    "one block": ("--model resnet20 --k 4", "--k 4 is for a local --method"),
    "a batch norm's images": (
        "--task segmentation --dataset pasted_digits --train-num-samples 8 --val-num-samples 4 "
        "--model test_resnet --method dgl --k 2 --img-size 64 --batch-size 2 --micro-batches 2 "
        "--model-kwargs",
        "this decoder's batch norm takes 2 images or more at a time",
    ),
    "splits": ("--dataset digits --train-split extra", "--train-split is for folders and timm's"),
    "all held out": (
        "--val-holdout 24",
        "--val-holdout 24 of 24 training images; expected 1 to 23",
    ),
    "no boolean": (
        "--model resnet20_man_dgl_k4 --model-kwargs ema=no",
        "ema is True or False, not 'no'",
    ),
    "accumulation": ("--grad-accum-steps 99", "more than the 6 batches of an epoch"),
    "batch of one": (
        "--batch-size 1",
        "--batch-size 1 leaves the auxiliaries' BatchNorm one value",
    ),
    "odd batch": ("--mixup 1 --batch-size 5", "--batch-size 5 is odd; expected 6"),
    "mixed contrast": (
        "--model resnet20_infopro_k4 --model-kwargs local_loss=contrast --mixup 1",
        "the contrastive loss needs one",
    ),
    "weights": (
        "--model resnet20_man_dgl_k10 --pretrained",
        "--model resnet20_man_dgl_k10: No pretrained weights exist",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_one_sentence_and_leave_the_old_run(mistake, run, tmp_path):
    words, sentence = WRONG[mistake]
    kept = tmp_path / "run" / "args.yaml"
    kept.parent.mkdir()
    kept.write_text("seed: 7\n")
    with pytest.raises(UserError) as error:
        run("--overwrite", *words.split())
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "run").iterdir()) == [kept]
    assert kept.read_text() == "seed: 7\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_existing_run_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"--resume .* goes on, --overwrite starts it anew"):
        run()


def test_resume_of_nothing(tmp_path):
    with pytest.raises(UserError, match="there is no run"):
        parse_args(["--resume", str(tmp_path)])


@pytest.mark.slow
def test_recipe_prints_one_sentence(tmp_path):
    train = str(ROOT / "recipes" / "train.py")
    result = python(train, "--model", "resnet2", "--output", str(tmp_path), check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("train.py: Unknown backbone 'resnet2'")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_bugs_are_not_swallowed(run, monkeypatch):
    def broken(*args):
        raise ValueError("a bug")

    monkeypatch.setattr("man_zoo.training.train.train_epoch", broken)
    with pytest.raises(ValueError, match="a bug"):
        run()


def test_non_finite_loss_stops_the_run(run, tmp_path, monkeypatch):
    from man_zoo.training.trainer import Trainer

    learn = Trainer.train_batch

    def poisoned(self, images, target):
        if self.updates == 6 + 2:
            images = images / 0
        return learn(self, images, target)

    run()
    good = (tmp_path / "run/checkpoints/epoch-0001/model.safetensors").read_bytes()
    monkeypatch.setattr(Trainer, "train_batch", poisoned)
    sentence = r"The loss of block 1 \(stem to layer1.1\) was nan at update 9; the last checkpoint"
    with pytest.raises(NonFiniteLoss, match=sentence):
        train_here("--resume", str(tmp_path / "run"), "--epochs", "2")
    assert (tmp_path / "run/checkpoints/epoch-0001/model.safetensors").read_bytes() == good
    monkeypatch.setattr(Trainer, "train_batch", learn)
    summary = train_here("--resume", str(tmp_path / "run"), "--epochs", "2")
    assert summary["epochs"] == 2


def test_spoilt_weights_are_not_saved():
    model = timm.create_model("resnet20_dgl_k4", num_classes=3, img_size=8)
    check_weights(Places(), model, 1)
    with torch.no_grad():
        next(model.auxiliaries[1].parameters())[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match=r"block 2 \(layer1.2 to layer2.0\).* after update 7"):
        check_weights(Places(), model, 7)


def test_spoilt_statistics_are_not_saved():
    """Weights may stay finite meanwhile: training normalises by the batch."""
    model = timm.create_model("resnet20_man_dgl_k4", num_classes=3, img_size=8)
    model.backbone.layer3[1].bn2.running_var[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match=r"block 4 \(layer3.1 to layer3.2\).* after update 7"):
        check_weights(Places(), model, 7)


def test_a_planned_run_keeps_its_plan(run, tmp_path):
    run("--model", "resnet20", "--method", "man_dgl", "--memory-budget", "16MiB")
    saved = parse_args(["-c", str(tmp_path / "run" / "args.yaml")])
    assert saved.memory_budget is None
    assert len(saved.cuts) == saved.k - 1
    summary = train_here("--resume", str(tmp_path / "run"), "--epochs", "2")
    assert summary["model"] == f"resnet20_man_dgl_k{saved.k}"
