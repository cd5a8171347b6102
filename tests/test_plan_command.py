"""``man-zoo plan``: the call that it prints makes what it planned; what it refuses."""

import pytest

import man_zoo
from man_zoo.benchmark.step import live_cost
from man_zoo.commands.plan import main
from man_zoo.planner import Setting
from man_zoo.planner.sizes import in_gib

CASES = {
    "keywords of the method": (
        "resnet20_man_dgl_k4 --cuts even --model-kwargs head=narrow head_norm=group",
        32,
    ),
    "image size": ("resnet18 --method infopro --k 2 --cuts even --img-size 160", 160),
    "height and width": ("resnet18 --method dgl --budget 0.16GiB --img-size 64x96", (64, 96)),
    "end to end": ("resnet18 --method e2e --budget 0.16GiB --img-size 64", 64),
    "stride": ("resnet18 --method dgl --k 2 --cuts even --img-size 64 --output-stride 8", 64),
}


@pytest.mark.parametrize(("words", "size"), CASES.values(), ids=CASES)
def test_the_call_that_is_printed_makes_what_was_planned(words, size, capsys) -> None:
    assert main([*words.split(), "--batch-size", "8", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    (call,) = (line for line in printed if line.startswith("man_zoo.localize("))
    model = eval(call, {"man_zoo": man_zoo})
    assert model.input_size[1:] == (size if isinstance(size, tuple) else (size, size))
    made = in_gib(live_cost(model.train(), Setting(8, device="cpu")).peak_bytes)
    (total,) = (line for line in printed if " of end to end, at " in line)
    assert f" {made} GiB" in total


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--budget 1GiB --cuts even", "--budget chooses the cuts; leave out --cuts"),
        ("--k 3 --picture front.png", "--picture draws what --compare finds; add --compare"),
        ("--largest batch --budget 1GiB --micro-batches auto", "leave out auto"),
        ("--largest image --budget 1GiB --calibrate", "leave it out of --largest image"),
        ("--k 4 --recompute auxiliaries.0", "Unknown recompute 'auxiliaries.0'"),
        ("--method e2e --k 1", "e2e has nothing to plan but what to recompute for a --budget"),
        ("--method e2e --budget 1GiB --compare", "--compare and --largest show it beside"),
    ],
)
def test_flags_that_say_nothing_together_are_refused(words, sentence, capsys) -> None:
    assert main(["resnet20", "--method", "man_dgl", *words.split()]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("resnet20_man_dgl_k10 --cuts even --model-kwargs momentum_units=2", "momentum_units=2"),
        ("resnet20_man_dgl_k4 --cuts even --model-kwargs momentum_units=3", "momentum_units=3"),
        (
            "resnet20 --method auglocal --budget 1GiB --model-kwargs aux_depth=9",
            "resnet20 cannot be cut into 2 blocks for auglocal",
        ),
    ],
)
def test_blocks_that_are_too_short_are_a_sentence(words, sentence, capsys) -> None:
    assert main(words.split()) == 1
    assert sentence in capsys.readouterr().err
