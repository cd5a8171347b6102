"""The benchmark on a network small enough to run in seconds; no figure of time is asserted."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from man_zoo.benchmark import benchmark, render
from man_zoo.benchmark.candidates import line_up, parse_candidate
from man_zoo.commands.benchmark import build_parser
from man_zoo.meter import StepCost

RECIPE = Path(__file__).parents[1] / "recipes" / "benchmark.py"
MODEL = "resnet20_man_dgl_k4"
E2E = "resnet20_e2e_k1"


def run_recipe(monkeypatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPE), run_name="__main__")
    return end.value.code


def names(*flags: str) -> list[str]:
    return [one.name for one in line_up(build_parser().parse_args(flags))]


def test_a_run_prints_a_table_and_writes_the_figures(monkeypatch, capsys, tmp_path):
    path = tmp_path / "figures.json"
    flags = (MODEL, "--batch-size", "8", "--steps", "2", "--device", "cpu", "--json", str(path))
    assert run_recipe(monkeypatch, *flags) == 0

    report = json.loads(path.read_text())
    assert report["settings"]["batch_size"] == 8
    assert report["machine"]["threads"] >= 1
    e2e, checkpointed, local = report["results"]
    assert [e2e["model"], checkpointed["model"]] == [E2E, f"{E2E}, checkpointed"]
    assert local["model"] == MODEL
    for result in report["results"]:
        assert len(result["seconds"]) == 2
        assert result["images_per_second"] == pytest.approx(8 / result["median_seconds"])
        assert result["cuda_peak_gib"] is None
    assert e2e["time_ratio"] == e2e["peak_ratio"] == e2e["arithmetic_ratio"] == 1
    pairs = zip(local["seconds"], e2e["seconds"], strict=True)
    assert local["time_ratio"] == pytest.approx(sum(own / its for own, its in pairs) / 2)
    assert local["arithmetic_ratio"] > 1
    assert 1 < checkpointed["arithmetic_ratio"] < 1.5
    assert checkpointed["peak_gib"] < e2e["peak_gib"]

    printed = capsys.readouterr().out
    assert render(report) == printed.rstrip("\n")
    header, rule, *lines = printed.splitlines()
    for column in ("ms/step", "images/s", "of e2e", "peak GiB", "arithmetic"):
        assert column in header
    assert "CUDA" not in header
    assert lines[2].split()[0] == MODEL
    assert f"{local['peak_gib']:.3f}" in lines[2]
    assert "torch" in printed
    assert set(rule) == {"-", " "}


@pytest.mark.slow
def test_processes_are_compared_in_one_run(monkeypatch, capsys, tmp_path):
    words = ("resnet20_man_dgl_k4:head=narrow", "--block-parallel", "2", "--batch-size", "4")
    report = tmp_path / "report.json"
    words = (*words, "--img-size", "8", "--steps", "2", "--json", str(report))
    assert run_recipe(monkeypatch, *words) == 0
    alone, threads, ddp, data, blocks = json.loads(report.read_text())["results"]
    assert [len(way["peak_mib"]) for way in (alone, threads, ddp, data, blocks)] == [1, 1, 2, 2, 2]
    assert all(len(way["seconds"]) == 2 for way in (alone, threads, ddp, data, blocks))
    assert alone["speed_up"] == 1
    # Each process has its blocks alone, and every replica all of them.
    assert max(blocks["peak_mib"]) < min(data["peak_mib"])
    assert "2 processes, block-parallel, batch 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--block-parallel", "2", "--batch-size", "5"), "--batch-size 5 does not divide by 2"),
        (("--block-parallel", "8"), "8 processes need as many blocks, and there are 4"),
        (("--block-parallel", "2", "--memory-batch-size", "8"), "drop --memory-batch-size"),
        (("--block-parallel", "2", "--compile"), "compares one model with itself, eager"),
    ],
)
def test_processes_that_cannot_be_compared(monkeypatch, capsys, flags, sentence):
    assert run_recipe(monkeypatch, "resnet20_dgl_k4", *flags) == 1
    assert sentence in capsys.readouterr().err


def test_without_time_a_large_model_takes_no_step():
    flags = ("vit_base_patch16_224_man_dgl_k2", "--no-time", "--batch-size", "128")
    report = benchmark(build_parser().parse_args([*flags, "--model-kwargs", "depth=2"]))
    e2e, checkpointed, local = report["results"]
    assert checkpointed["peak_ratio"] < 1
    assert local["peak_gib"] == pytest.approx(local["peak_ratio"] * e2e["peak_gib"])
    assert local["seconds"] is None
    assert "ms/step" not in render(report)


def test_a_memory_budget_is_kept_by_the_step_it_is_for():
    budgets = [f"{E2E}:memory_budget=24MiB", f"{MODEL}:memory_budget=44MiB"]
    flags = (*budgets, "--no-time", "--batch-size", "32", "--opt", "adamw", "--no-channels-last")
    plain, _, e2e, local = benchmark(build_parser().parse_args(flags))["results"]
    assert plain["peak_gib"] * 1024 > 50
    assert 22 < e2e["peak_gib"] * 1024 <= 24
    assert 42 < local["peak_gib"] * 1024 <= 44


def test_a_budget_for_all_models_is_not_for_the_baselines():
    flags = [MODEL, "--model-kwargs", "memory_budget=20MiB", "num_classes=7"]
    e2e, _, local = line_up(build_parser().parse_args(flags))
    assert e2e.keywords == {"num_classes": 7}
    assert local.keywords == {"num_classes": 7, "memory_budget": "20MiB"}


def test_each_backbone_has_its_own_baseline_once():
    other = "resnet32_dgl_k8"
    assert names(MODEL, f"{MODEL}:form=paper", E2E, other) == [
        *(E2E, f"{E2E}, checkpointed", MODEL, f"{MODEL}:form=paper"),
        *("resnet32_e2e_k1", "resnet32_e2e_k1, checkpointed", other),
    ]


def test_checkpointing_has_micro_batches_in_a_line_of_its_own():
    few = "4 micro-batches"
    assert names(MODEL, "--micro-batches", "4") == [
        *(E2E, f"{E2E}, checkpointed", f"{E2E}, checkpointed, {few}", f"{MODEL}, {few}"),
    ]


def test_compiled_lines_follow_the_eager_ones_and_have_a_compiled_baseline():
    contestants = line_up(build_parser().parse_args([MODEL, "--compile"]))
    assert [one.compiled for one in contestants] == [False] * 3 + [True] * 3
    assert {one.baseline for one in contestants[3:]} == {contestants[3].name}


def test_keywords_of_a_variant_win_and_stay_away_from_end_to_end():
    flags = (f"{MODEL}:form=paper:momentum=0.9", "--model-kwargs", "form=release", "num_classes=7")
    e2e, _, local = line_up(build_parser().parse_args(flags))
    assert e2e.keywords == {"num_classes": 7}
    assert local.keywords == {"num_classes": 7, "form": "paper", "momentum": 0.9}


def test_values_are_python_literals_or_text():
    contestant = parse_candidate("resnet20_man_infopro_k4:lambda1=(5,0.5):cuts=even", {})
    assert contestant.keywords == {"lambda1": (5, 0.5), "cuts": "even"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["resnet32_man_dgl_k"], "Unknown model 'resnet32_man_dgl_k'; .*'resnet32_man_dgl_k"),
        ([f"{MODEL}:form"], "expected KEY=VALUE, got 'form'"),
        ([f"{MODEL}:form=papr"], "Unknown form 'papr'.*'paper'"),
        ([f"{MODEL}:fom=paper"], "Unknown keyword .*'fom'.*'form'"),
        ([f"{MODEL}:num_classes=7"], "What is of the network goes into --model-kwargs"),
        ([MODEL, "--device", "cdu"], "Unknown device 'cdu'"),
        ([MODEL, "--compile", "--no-time"], "--compile is about time"),
        (
            [MODEL, "--json", "nowhere/figures.json"],
            "expected a file in a folder that is there, got 'nowhere/",
        ),
    ],
)
def test_an_error_is_one_sentence(monkeypatch, capsys, flags, sentence):
    # What the model itself finds wrong would come after end to end has been measured.
    monkeypatch.setattr("man_zoo.benchmark.step.measure", lambda *_, **__: StepCost(1, 1))
    assert run_recipe(monkeypatch, *flags, "--no-time") == 1
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert error.startswith("benchmark.py: ")
    assert "\n" not in error
    assert re.search(sentence, error)
