"""Flags of runs and commands: what cannot be meant is one sentence, before anything is done."""

import numpy as np
import pytest
import torch

from man_zoo.commands import analyse, benchmark, evaluate, plan, sweep
from man_zoo.commands.__main__ import main as run_command
from man_zoo.console import UserError
from man_zoo.runs.config import parse_args
from man_zoo.runs.flags import build_parser

WHOLE_FROM_1 = "expected a whole number from 1"
ABOVE_0 = "expected a number above 0"
FROM_0 = "expected a number from 0"
FROM_0_TO_1 = "expected a number from 0 to 1"
BELOW_1 = "expected a number from 0 and below 1"
PART = "expected a number above 0 and up to 1"
SEED = "expected a whole number from 0 to 2147483647"
PAIR = "expected KEY=VALUE"

REFUSED = [
    ("--k", ("0", "-1", "1.5"), WHOLE_FROM_1),
    ("--man-momentum", ("2", "-0.1", "nan"), FROM_0_TO_1),
    ("--layer-decay", ("0", "2", "nan"), PART),
    ("--lr", ("nan", "-1", "inf", "1e300"), FROM_0),
    ("--momentum", ("2", "1", "-0.1", "nan"), BELOW_1),
    ("--weight-decay", ("-1", "nan"), FROM_0),
    ("--clip-grad", ("-1", "0", "nan"), ABOVE_0),
    ("--grad-accum-steps", ("0",), WHOLE_FROM_1),
    ("--micro-batches", ("0", "auto"), WHOLE_FROM_1),
    ("--epochs", ("0", "-1", "1.5"), WHOLE_FROM_1),
    ("--warmup-epochs", ("-1", "nan"), FROM_0),
    ("--warmup-lr", ("-1", "nan"), FROM_0),
    ("--min-lr", ("-1", "nan"), FROM_0),
    ("--smoothing", ("nan", "2", "-1"), FROM_0_TO_1),
    ("--mixup", ("-1", "nan"), FROM_0),
    ("--cutmix", ("-1", "inf"), FROM_0),
    ("--mixup-prob", ("2", "-0.5"), FROM_0_TO_1),
    ("--mixup-switch-prob", ("2", "nan"), FROM_0_TO_1),
    ("--model-ema-decay", ("2", "1", "nan", "-1"), BELOW_1),
    ("--seed", ("-1", str(2**70), "1.5"), SEED),
    ("--cpu-threads", ("0", "-1", "100000"), "expected a whole number from 1 to 1024"),
    ("--checkpoint-hist", ("0",), WHOLE_FROM_1),
    ("--val-interval", ("0",), WHOLE_FROM_1),
    ("--log-interval", ("0",), WHOLE_FROM_1),
    ("--model-kwargs", ("head", "=3", "2x=3"), PAIR),
    ("--opt-kwargs", ("eps",), PAIR),
    ("--sched-kwargs", ("decay",), PAIR),
    ("--memory-budget", ("0", "-1GiB", "6 apples", "nanGiB", "infGiB"), "such as 6GiB"),
]


def cases(refused):
    return [(flag, text, expected) for flag, texts, expected in refused for text in texts]


def refuse(parser, flag: str, text: str, expected: str) -> None:
    words = [flag, text] if flag.endswith("kwargs") else [f"{flag}={text}"]
    with pytest.raises(UserError, match=expected) as caught:
        parser(words)
    said = str(caught.value)
    assert flag in said
    assert text in said
    assert "\n" not in said


@pytest.mark.parametrize(("flag", "text", "expected"), cases(REFUSED))
def test_numbers_of_a_run_that_cannot_be_meant(flag, text, expected) -> None:
    refuse(parse_args, flag, text, expected)


def test_a_file_with_such_a_number_is_named(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model-ema-decay: .nan\n")
    with pytest.raises(UserError, match=rf"{path}: argument --model-ema-decay: {BELOW_1}"):
        parse_args(["-c", str(path)])


TOGETHER = {
    "a warm-up longer than the run": (
        "--epochs 3 --warmup-epochs 3.5",
        "--warmup-epochs 3.5 is longer than the run; expected 3 or less",
    ),
    "an end above the peak": ("--min-lr 0.2", "--min-lr 0.2 is above --lr 0.1; expected 0.1 or"),
    "a start above the peak": ("--warmup-lr 1", "--warmup-lr 1.0 is above --lr 0.1; expected 0.1"),
    "a keyword that is a flag": (
        "--model-kwargs head=wide num_classes=7",
        "--model-kwargs num_classes=7 is given by a flag; expected --num-classes.",
    ),
    "another": ("--opt-kwargs lr=3", "--opt-kwargs lr=3 is given by a flag; expected --lr."),
    "one with two names": (
        "--man-momentum 0.9 --model-kwargs momentum=0.5",
        "--man-momentum 0.9 and --model-kwargs momentum=0.5 say the same thing",
    ),
    "a third": ("--sched-kwargs min_lr=0", "min_lr=0 is given by a flag; expected --min-lr."),
    "an empty run": ("--resume=", "--resume is empty; expected a run folder."),
}


@pytest.mark.parametrize(("words", "sentence"), TOGETHER.values(), ids=TOGETHER)
def test_numbers_that_do_not_go_together(words, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_args(words.split())


FITTING = (
    "--lr 0 --warmup-epochs 0",
    "--warmup-epochs 15 --warmup-lr 0.1 --min-lr 0.1",
    "--smoothing 1 --mixup 0 --mixup-prob 0 --mixup-switch-prob 1",
    "--man-momentum 1 --momentum 0 --layer-decay 1 --model-ema-decay 0",
    "--k 1 --seed 2147483647 --memory-budget 1.5GiB",
    "--model-kwargs head=narrow lambda1=[5,0] extra=a=b",
)


@pytest.mark.parametrize("words", FITTING)
def test_numbers_at_the_edge_are_taken(words) -> None:
    parse_args(words.split())


def test_every_seed_that_is_taken_is_one_for_numpy_and_torch_on_every_process() -> None:
    largest = parse_args(["--seed", "2147483647"]).seed
    processes = 2**16
    np.random.seed(largest + processes)
    torch.manual_seed(largest + processes)


def test_no_number_of_a_run_is_unchecked() -> None:
    unchecked = [action.dest for action in build_parser()._actions if action.type in (int, float)]
    assert unchecked == ["in_chans"]  # has choices


COMMANDS = {
    benchmark: (
        ["resnet20_dgl_k4"],
        [
            ("--steps", ("0", "-1"), WHOLE_FROM_1),
            ("--batch-size", ("0", "x"), WHOLE_FROM_1),
            ("--memory-batch-size", ("0",), WHOLE_FROM_1),
            ("--img-size", ("0", "-4"), WHOLE_FROM_1),
            ("--cpu-threads", ("0", "2000"), "expected a whole number from 1 to 1024"),
            ("--model-kwargs", ("head",), PAIR),
            ("--json", ("nowhere/x.json", "."), "expected a file in a folder that is there"),
        ],
    ),
    plan: (
        ["resnet20_dgl_k4"],
        [
            ("--k", ("0",), WHOLE_FROM_1),
            ("--batch-size", ("0",), WHOLE_FROM_1),
            ("--img-size", ("0",), WHOLE_FROM_1),
            ("--budget", ("0", "-1GiB", "6 apples", "nan"), "such as 6GiB"),
            ("--processes", ("0", "-2", "two"), WHOLE_FROM_1),
            ("--memory", ("0", "1GiB,,2GiB", "1GiB,2 apples"), "such as 24GiB,12GiB"),
            ("--model-kwargs", ("head",), PAIR),
            ("--picture", ("nowhere/x.png",), "expected a file in a folder that is there"),
        ],
    ),
    analyse: (
        ["run"],
        [
            ("--seed", ("-1", str(2**70)), SEED),
            ("--workers", ("-1",), "expected a whole number from 0"),
            ("--batch-size", ("0",), WHOLE_FROM_1),
            ("--train-images", ("0",), WHOLE_FROM_1),
            ("--val-images", ("0",), WHOLE_FROM_1),
        ],
    ),
    evaluate: (["resnet20"], [("--batch-size", ("0",), WHOLE_FROM_1)]),
}


@pytest.mark.parametrize(
    ("command", "flag", "text", "expected"),
    [(command, *case) for command, (_, refused) in COMMANDS.items() for case in cases(refused)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_numbers_of_a_command_that_cannot_be_meant(command, flag, text, expected) -> None:
    needed, _ = COMMANDS[command]
    parser = command.build_parser()
    refuse(lambda words: parser.parse_args([*needed, *words]), flag, text, expected)


def test_jobs_of_a_sweep(capsys) -> None:
    assert run_command(["sweep", "cifar10_short", "--jobs", "0"]) == 1
    assert f"argument --jobs: {WHOLE_FROM_1}, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [analyse, benchmark, evaluate, plan, sweep])
def test_no_number_of_a_command_is_unchecked(command) -> None:
    actions = command.build_parser()._actions
    unchecked = {action.dest for action in actions if action.type in (int, float)}
    assert unchecked <= {"in_chans", "output_stride"}  # which have choices
