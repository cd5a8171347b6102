"""Flags of the data: what cannot be meant is refused in one sentence, before anything is read."""

import re

import pytest
import timm
import torch
from small_data import loaders, write_images
from timm.models import save_for_hf

from man_zoo.commands import benchmark, evaluate, plan
from man_zoo.console import Parser, UserError
from man_zoo.data import add_data_args
from man_zoo.data.__main__ import main

WHOLE_FROM_1 = "expected a whole number from 1"
WHOLE_FROM_0 = "expected a whole number from 0"
ABOVE_0 = "expected a number above 0"
FROM_0 = "expected a number from 0"
FROM_0_TO_1 = "expected a number from 0 to 1"
A_NUMBER = "expected a number"
PART = "expected a number above 0 and up to 1"

REFUSED = [
    ("-b", ("0", "-1", "1.5"), WHOLE_FROM_1),
    ("-vb", ("0", "-1"), WHOLE_FROM_1),
    ("-j", ("-1", "two"), WHOLE_FROM_0),
    ("--img-size", ("0", "-1", "8.5", "8x", "8x0", "8x8x8", "8X8"), WHOLE_FROM_1),
    ("--full-size", ("0", "8x"), WHOLE_FROM_1),
    ("--scale-jitter", ("0 1", "-1 2"), ABOVE_0),
    ("--input-size", ("3 0 8", "3 8 -8"), WHOLE_FROM_1),
    ("--num-classes", ("0", "-3"), WHOLE_FROM_1),
    ("--train-subset", ("0", "-1"), WHOLE_FROM_1),
    ("--train-num-samples", ("0",), WHOLE_FROM_1),
    ("--val-num-samples", ("-1",), WHOLE_FROM_1),
    ("--mean", ("nan", "0.5 inf 0.5"), A_NUMBER),
    ("--std", ("0", "-0.5", "nan", "0.2 0 0.2"), ABOVE_0),
    ("--crop-pct", ("0", "-1", "7", "nan"), PART),
    ("--crop-padding", ("-1", "0.5"), WHOLE_FROM_0),
    ("--hflip", ("7", "-0.1", "nan"), FROM_0_TO_1),
    ("--vflip", ("7", "-0.1"), FROM_0_TO_1),
    ("--reprob", ("2", "-1", "nan"), FROM_0_TO_1),
    ("--recount", ("0", "-1"), WHOLE_FROM_1),
    ("--scale", ("0 1", "0.1 7", "nan 1"), PART),
    ("--ratio", ("0 1", "-1 1", "1 inf"), ABOVE_0),
    ("--color-jitter", ("-1", "nan", "inf"), FROM_0),
    ("--remode", ("noise",), "invalid choice: 'noise'"),
]


@pytest.mark.parametrize(
    ("flag", "words", "expected"),
    [(flag, words, expected) for flag, texts, expected in REFUSED for words in texts],
)
def test_numbers_that_cannot_be_meant(flag, words, expected):
    parser = Parser()
    add_data_args(parser)
    value = [f"{flag}={words}"] if " " not in words else [flag, *words.split()]
    with pytest.raises(UserError, match=expected) as caught:
        parser.parse_args(value)
    assert flag in str(caught.value)


FITTING = {
    "no workers": ("-j", 0),
    "no padding": ("--crop-padding", 0),
    "no flips": ("--hflip", 0, "--vflip", 0),
    "always flipped": ("--hflip", 1),
    "a mean below zero": ("--mean", "-0.5"),
    "no jitter": ("--color-jitter", 0),
    "a whole image": ("--crop-pct", 1),
}


@pytest.mark.parametrize("flags", FITTING.values(), ids=FITTING)
def test_numbers_at_the_edge_are_taken(flags):
    loaders(*flags)


TOGETHER = {
    "two means": (("--mean", 0.1, 0.2), "--mean has 2 values; expected 1, or 3"),
    "three of one": (
        ("--in-chans", 1, "--std", 0.1, 0.2, 0.3),
        "--std has 3 values; expected 1",
    ),
    "scale": (("--scale", 1, 0.5), "--scale 1.0 0.5 .* expected the smaller number first"),
    "ratio": (("--ratio", 2, 0.5), "--ratio 2.0 0.5 .* expected the smaller number first"),
    "policy": (("--aa", "randm9"), "--aa 'randm9' .* expected"),
    "section": (("--aa", "rand-q9"), "--aa 'rand-q9' .* expected"),
    "streamed interpolation": (
        ("--interpolation", "bilinea", "--in-memory", "off"),
        "Unknown --interpolation 'bilinea'.*nearest is 'bilinear'",
    ),
    "training interpolation": (
        ("--train-interpolation", "bilinea", "--in-memory", "off", "--scale", 0.5, 1),
        "Unknown --train-interpolation 'bilinea'.*nearest is 'bilinear'",
    ),
    "one pixel": (
        ("--img-size", 1),
        "--crop-padding 2 .* images of 1 x 1 pixels; expected 0, or --padding-mode constant",
    ),
    "much padding": (
        ("--img-size", 6, "--crop-padding", 6, "--in-memory", "off"),
        "--crop-padding 6 .* images of 6 x 6 pixels; expected 5 or less, or --padding-mode const",
    ),
}


@pytest.mark.parametrize(("flags", "sentence"), TOGETHER.values(), ids=TOGETHER)
def test_flags_that_do_not_go_together(flags, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        loaders(*flags, "-j", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", ["on", "off"])
@pytest.mark.parametrize("more", [("--padding-mode", "constant"), ("--crop-padding", 0)])
def test_one_pixel_is_an_image(memory, more):
    train, val, info = loaders("--img-size", 1, "--in-memory", memory, "-j", 0, *more)
    assert info.input_size == (3, 1, 1)
    for loader in (train, val):
        assert next(iter(loader))[0].shape == (64, 3, 1, 1)


def test_one_pixel_is_refused_only_where_it_is_padded():
    assert loaders("--img-size", 1, "--no-aug")[2].input_size == (3, 1, 1)


@pytest.mark.parametrize("memory", ["on", "off"])
def test_height_and_width(memory):
    train, val, info = loaders("--img-size", "8x24", "--in-memory", memory, "-j", 0)
    assert info.input_size == (3, 8, 24)
    assert info.name.endswith("at 8x24")
    for loader in (train, val):
        assert next(iter(loader))[0].shape == (64, 3, 8, 24)


@pytest.mark.parametrize("size", [1, 2])
def test_folders_of_tiny_images(tmp_path, size):
    for split in ("train", "val"):
        write_images(tmp_path / split, count=4, size=size)
    train, _, info = loaders("--dataset", "folder", "--data-dir", tmp_path, "-b", 4)
    assert info.input_size == (3, size, size)
    assert torch.isfinite(next(iter(train))[0]).all()


def test_the_command_that_describes_data(capsys):
    assert main(["--dataset", "folder", "--data-dir", "nowhere"], "data") == 1
    assert capsys.readouterr().err.startswith("data: --data-dir nowhere is not a directory")
    assert main(["--hflip", "7"], "data") == 1
    assert capsys.readouterr().err.count("\n") == 1


COMMANDS = {
    "plan": (plan.main, ["densenet121", "--k", "2"]),
    "plan, at creation": (plan.main, ["maxvit_tiny_tf_224", "--k", "2"]),
    "benchmark": (benchmark.main, ["densenet121_dgl_k2", "--batch-size", "2", "--no-time"]),
}


@pytest.mark.parametrize(("main", "words"), COMMANDS.values(), ids=COMMANDS)
def test_one_pixel_is_too_small_for_a_model(main, words, capsys):
    assert main([*words, "--img-size", "1"], "command") == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert re.search("command: .*(images of 1 x 1 pixels|--img-size 1): .", sentence)


def test_evaluation_of_images_that_the_model_does_not_take(tmp_path):
    vit = timm.create_model("test_vit", num_classes=10)
    save_for_hf(vit, tmp_path, safe_serialization=True)
    words = [str(tmp_path), "--img-size", "17"]
    with pytest.raises(UserError, match=r"^The model takes no images of 17 x 17: Input height"):
        evaluate.evaluate_weights(evaluate.parse_args(words))
