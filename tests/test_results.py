"""The results page: it is made of the lines beside it, and says so when it is not."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from recipe import ROOT

from man_zoo.analysis.pictures import PICTURES
from man_zoo.arithmetic import flop_counter
from man_zoo.console.picture import digest, digest_of
from man_zoo.results import pictures, tables
from man_zoo.results.groups import Groups
from man_zoo.results.page import PAGE, Page
from man_zoo.results.published import CIFAR10_ERROR
from man_zoo.results.records import add_result, exit_flops, read_results

DOCS = ROOT / "docs"
LINES = read_results(DOCS / "results" / "cifar10_short.jsonl")


def test_the_page_in_the_repository_is_that_of_the_results() -> None:
    assert Page(DOCS).stale() == [], "make results"


def test_the_readme_has_the_figures_of_the_page() -> None:
    readme = (ROOT / "README.md").read_text()
    groups = Groups(read_results(DOCS / "results" / "cifar10_cpu.jsonl"))
    e2e = groups["resnet20_e2e_k1"]
    for label, name in {
        "end to end": "resnet20_e2e_k1",
        "`dgl`": "resnet20_dgl_k4",
        '`dgl`, `head="wide"`': "resnet20_dgl_wide",
        '`dgl`, `head="separable"`': "resnet20_dgl_separable",
        "`man_dgl`": "resnet20_man_paper",
        "`overlap_dgl`": "resnet20_overlap_dgl_k4",
    }.items():
        group = groups[name]
        cost = group.first["flops_per_image"] / e2e.first["flops_per_image"]
        memory = 1024 * group.first["peak_gib"]
        seeds = len(group.lines)
        row = f"| {label} | {group.top1:.2f} | {seeds} | {memory:.0f} | {cost:.2f} |"
        assert row in readme, row


def test_the_feature_maps_are_of_the_analysis_on_the_page() -> None:
    found = json.loads((DOCS / "results" / "analysis.json").read_text())
    assert digest_of(DOCS / "pictures" / "feature_maps.png") == digest(found)


@pytest.fixture
def docs(tmp_path) -> Path:
    """A copy of docs/ that may be changed."""
    for name in ("recipes", "hub"):
        (tmp_path / name).symlink_to(ROOT / name)
    return Path(shutil.copytree(DOCS, tmp_path / "docs"))


def change(docs: Path, file: str, name: str, **values: object) -> None:
    path = docs / "results" / file
    add_result(path, next(line for line in read_results(path) if line["name"] == name) | values)


def test_another_result_makes_the_page_and_the_pictures_of_it_stale(docs) -> None:
    change(docs, "cifar10_cpu.jsonl", "resnet20_dgl_k4", top1=12.34, exits=[12.34] * 4)
    stale = [PAGE.name, *(f"results_{of}.png" for of in ("arithmetic", "memory", "exits"))]
    assert Page(docs).stale() == stale
    assert Page(docs).write() == stale
    assert Page(docs).stale() == []
    assert Page(docs).text != Page(DOCS).text


def test_a_result_that_no_picture_shows_makes_the_page_alone_stale(docs) -> None:
    change(docs, "cifar10_short.jsonl", "man_ema_only", top1=12.34)
    assert Page(docs).stale() == [PAGE.name]
    Page(docs).write()
    assert "12.34" in (docs / PAGE).read_text()


def test_another_analysis_makes_its_table_and_pictures_stale(docs) -> None:
    path = docs / "results" / "analysis.json"
    found = json.loads(path.read_text())
    found["runs"][0]["probes"][0] = 12.34
    path.write_text(json.dumps(found))
    assert set(Page(docs).stale()) == {PAGE.name, *PICTURES}
    Page(docs).write()
    assert Page(docs).stale() == []
    assert f"| {found['depths'][0]} | 12.34 |" in (docs / PAGE).read_text()


def test_a_picture_by_hand_is_stale(docs) -> None:
    shutil.copyfile(
        docs / "pictures" / "results_exits.png", docs / "pictures" / "results_arithmetic.png"
    )
    assert Page(docs).stale() == ["results_arithmetic.png"]


def line(name: str, seed: int, top1: float, **values: object) -> dict:
    return {
        "name": name,
        "model": name,
        "seed": seed,
        "top1": top1,
        "exits": [10.0, top1],
        "epochs": [{"seconds": 20.0}, {"seconds": 90.0}, {"seconds": 30.0}],
        "data": {"train_count": 100},
        "flops_per_image": 5.0,
        "exit_flops": [1, 2],
        "peak_gib": 0.5,
    } | values


@pytest.fixture
def groups() -> Groups:
    e2e = line("resnet32_e2e_k1", 0, 80.0, flops_per_image=2.0, exits=[80.0])
    return Groups([e2e, *(line("resnet32_dgl_k16", seed, 70.0 + seed) for seed in range(3))])


def test_seeds_are_taken_together(groups) -> None:
    group = groups["resnet32_dgl_k16"]
    assert (group.top1, tables.spread(group.tops)) == (71.0, "71.00 ± 1.00 (3)")
    assert tables.spread(groups["resnet32_e2e_k1"].tops) == "80.00"
    assert group.exits == [10.0, 71.0]
    assert group.arithmetic == 3 * 100 * 5.0
    assert group.seconds == 3 * 20  # of an epoch that nothing else disturbed
    with pytest.raises(ValueError, match="nearest is 'resnet32_dgl_k16'"):
        groups["resnet32_dgl_k8"]


def test_a_difference_has_the_standard_error_of_both_sides() -> None:
    three, two = [70.0, 71.0, 72.0], [80.0, 82.0]
    assert tables.difference(three, two) == "-10.00 ± 1.15"  # sqrt(1 / 3 + 2 / 2)
    assert tables.difference(two, three) == "+10.00 ± 1.15"
    assert tables.difference(three, [80.0]) == "-9.00"  # of one seed the spread is not known


def test_end_to_end_has_no_distance_to_itself(groups) -> None:
    rows = [("e2e", "resnet32_e2e_k1"), ("DGL", "resnet32_dgl_k16")]
    e2e, dgl = tables.distances(groups, rows, "resnet32_e2e_k1").splitlines()[2:]
    assert "| 80.00 | - |" in e2e
    assert "| 71.00 ± 1.00 (3) | -9.00 |" in dgl


def test_the_table_puts_ours_beside_the_published(groups) -> None:
    table = tables.methods(groups, [("DGL", "resnet32_dgl_k16")], "resnet32_e2e_k1")
    row = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    published = CIFAR10_ERROR["resnet32_dgl_k16"]
    assert row == [
        "DGL", "`resnet32_dgl_k16`", "71.00 ± 1.00 (3)", "-9.00",
        f"{100 - published:.2f}", f"{6.37 - published:+.2f}", "512", "2.50", "60",
    ]  # fmt: skip


def test_scores_of_a_dense_task_are_those_of_its_classes() -> None:
    lines = [line("e2e", 0, 0.0, miou=70.0, iou={"lake": 20.0}, flops_per_image=2.0)]
    lines += [line("dgl", seed, 0.0, miou=60.0 + seed, iou={"lake": 9.5}) for seed in range(3)]
    columns = [("mean", ["miou"]), ("lake", ["iou", "lake"])]
    table = tables.scores(Groups(lines), [("DGL", "dgl")], columns, "e2e").splitlines()
    assert table[0] == "|  | config | mean | lake | peak MiB | arithmetic | s |"
    assert table[-1] == "| DGL | `dgl` | 61.00 ± 1.00 (3) | 9.50 ± 0.00 (3) | 512 | 2.50 | 60 |"


def test_a_longer_run_stands_beside_the_short_one(groups) -> None:
    rows = [("DGL", "resnet32_dgl_k16", "resnet32_e2e_k1"), ("e2e", "resnet32_e2e_k1", "")]
    table = tables.ablation(groups, rows, "resnet32_e2e_k1").splitlines()
    assert table[2].endswith("| 80.00 (3 epochs) |")
    assert table[3].endswith("| - |")
    longer = {"resnet32_dgl_k16": "resnet32_e2e_k1"}
    pairs = [row[:2] for row in rows]
    numbers = pictures.arithmetic_numbers(groups, pairs, "resnet32_e2e_k1", longer)
    assert numbers[0]["points"] == [[2.5, [70.0, 71.0, 72.0]], [1.0, [80.0]]]
    assert numbers[1]["points"] == [[1.0, [80.0]]]


def test_pictures_of_memory_and_of_exits(groups) -> None:
    rows = [("DGL", "resnet32_dgl_k16")]
    assert pictures.memory_numbers(groups, rows)[0]["points"] == [[512.0, [70.0, 71.0, 72.0]]]
    exits = pictures.exits_numbers(groups, rows)
    assert exits == [{"label": "DGL", "points": [[0.5, [10.0]], [1.0, [71.0]]]}]
    dear = line("man", 0, 60.0, exits=[10.0, None, 60.0], exit_flops=[3, None, 2])
    (row,) = pictures.exits_numbers(Groups([dear]), [("MAN", "man")])
    assert row["points"] == [[1.5, [10.0]], [1.0, [60.0]]]


def test_the_arithmetic_up_to_every_exit() -> None:
    model = timm.create_model("resnet20_dgl_k4")
    found = exit_flops(model, (3, 32, 32))
    assert model.training
    model.eval()
    images = torch.zeros(1, 3, 32, 32)
    with flop_counter() as whole:
        model(images)
    with flop_counter() as first:
        model.blocks[0].classify(model.blocks[0].run_units(images))
    assert (found[0], found[-1]) == (first.get_total_flops(), whole.get_total_flops())
    assert found[0] < found[1] < found[2]
    contrast = timm.create_model("resnet20_infopro_k4", local_loss="contrast")
    assert exit_flops(contrast, (3, 32, 32)) == [None, None, None, found[-1]]


def test_distances_stand_beside_what_they_cost(groups) -> None:
    table = tables.distances(groups, [("DGL", "resnet32_dgl_k16")], "resnet32_e2e_k1")
    row = "| DGL | `resnet32_dgl_k16` | 71.00 ± 1.00 (3) | -9.00 | 512 | 2.50 | 60 |"
    assert table.splitlines()[-1] == row


def test_heads_are_compared_with_one_of_them(groups) -> None:
    lines = [line(name, 0, top1, epochs=[{"val_top1": top1 + 1}], flops_per_image=flops)
             for name, top1, flops in (("narrow", 60.0, 4.0), ("wide", 62.0, 5.0))]  # fmt: skip
    table = tables.heads(Groups(lines), [("wide", "wide")], "narrow")
    assert table.splitlines()[-1] == "| wide | 63.00 | 10.00 | 62.00 | 1.25 | 1.00 |"


def test_what_fits_into_the_same_memory_has_the_accuracy_of_its_runs(groups) -> None:
    found = {"results": [{"model": "a:b=c", "peak_gib": 0.25, "arithmetic_ratio": 1.5}]}
    table = tables.equal_memory(
        tables.by_model(found), groups, [("one", "a:b=c", "resnet32_e2e_k1")]
    )
    assert table.splitlines()[-1] == "| one | 256 | 1.50 | 80.00 |"


def test_the_weights_of_a_tag() -> None:
    entries = [{"name": "a", "tag": tag, "metrics": {"top1": 85.1}} for tag in ("one", "other")]
    assert tables.weights(entries, "one").splitlines()[2:] == ["| `a.one` | 85.10 |"]


def test_a_published_cell_shows_ours_where_it_was_run(groups) -> None:
    table = tables.published(ROOT / "recipes" / "configs", groups)
    assert "| `cifar10/resnet32_dgl_k16.yaml` | 14.08 | - | 29.00 |" in table
    assert "| `cifar10/resnet110_dgl_k55.yaml` | 14.45 | - | not run |" in table
    assert "| `imagenet/resnet101_man_infopro_k4.yaml` | 21.73 | 10.47 | not run |" in table


def test_a_line_takes_the_place_of_its_own_name_and_seed(tmp_path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    for one in (line("a", 0, 1.0), line("a", 1, 2.0), line("a", 0, 3.0)):
        add_result(path, one)
    assert [(one["seed"], one["top1"]) for one in read_results(path)] == [(0, 3.0), (1, 2.0)]
    assert [path.name for path in path.parent.iterdir()] == ["lines.jsonl"]


def test_the_results_in_the_repository_are_whole() -> None:
    assert {"resnet32_e2e_k1", "resnet32_dgl_k16", "resnet32_man_dgl_k16"} <= {
        one["name"] for one in LINES
    }
    for one in LINES:
        assert one["top1"] == one["epochs"][-1]["val_top1"] == one["exits"][-1]
        assert one["data"] == LINES[0]["data"]
        assert one["commit"]
        assert not one["commit"].endswith("+")
        json.dumps(one, allow_nan=False)
