"""``man-zoo curves``: how runs went, from their logs, in one picture."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from recipe import flags, train_here, write_images

from man_zoo.analysis import curve_pictures
from man_zoo.analysis.curve_pictures import draw_curves
from man_zoo.analysis.curves import read_curves, render
from man_zoo.commands.__main__ import main as run_command
from man_zoo.console import UserError
from man_zoo.console.picture import COLOURS, digest, digest_of

ACCURACY = "validation top-1, % (dotted: of the weight EMA)"


def write_run(run: Path, *lines: dict[str, Any]) -> Path:
    run.mkdir(parents=True)
    (run / "args.yaml").write_text("{}\n")
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def lines(epochs: int, blocks: int, **more: Any) -> list[dict[str, Any]]:
    """A log's lines, as they were before gradients were in them."""
    return [
        {"step": 10 * epoch, "epoch": epoch}
        | {f"loss_block{j + 1}": (j + 1) / epoch for j in range(blocks)}
        | {"images_per_second": 100.0 + epoch, "seconds": 2.0, "val_top1": 10.0 * epoch}
        | more
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """What is drawn of runs."""
    figures = []
    monkeypatch.setattr(curve_pictures, "save", lambda figure, *_: figures.append(figure))

    def draw(*runs: Path, x: str = "epoch"):
        draw_curves(read_curves(runs), tmp_path / "curves.png", x)
        return figures.pop()

    return draw


def panels(figure) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_a_run_is_drawn_as_it_was_logged(tmp_path, capsys) -> None:
    train_here(*flags(write_images(tmp_path / "data"), tmp_path, "--epochs", "2"))
    run, capture = tmp_path / "run", capsys.readouterr
    capture()
    assert run_command(["curves", str(run)]) == 0
    header, _, row, _, where = capture().out.splitlines()
    assert row.split()[:2] == ["run", "2"]
    assert where == f"picture: {run / 'curves.png'}"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    [curves] = read_curves([run])
    for key in ("loss_block", "grad_norm_block"):
        assert curves[key] == [[line[f"{key}{j}"] for line in log] for j in (1, 2, 3, 4)]
    assert digest_of(run / "curves.png") == digest({"x": "epoch", "runs": [curves]})
    assert f"{log[-1]['loss_block4']:.3f}" in row
    assert "last block" in header


def test_a_log_from_before_has_three_panels(tmp_path, figure) -> None:
    drawn = panels(figure(write_run(tmp_path / "old", *lines(3, 2))))
    assert set(drawn) == {"local loss", "validation top-1, %", "images a second"}
    first, last = drawn["local loss"].get_lines()
    assert list(first.get_ydata()) == [1, 1 / 2, 1 / 3]
    assert list(last.get_ydata()) == [2, 1, 2 / 3]
    assert first.get_color() != last.get_color()


def test_of_many_blocks_a_scale_tells(tmp_path, figure) -> None:
    drawn = figure(write_run(tmp_path / "deep", *lines(2, 16)))
    [scale] = [axes for axes in drawn.axes if axes.get_ylabel() == "block"]
    assert scale.get_ylim() == (0.5, 16.5)
    assert not drawn.legends
    colours = [line.get_color() for line in panels(drawn)["local loss"].get_lines()]
    assert len(set(colours)) == 16


def test_of_several_runs_each_has_a_colour(tmp_path, figure) -> None:
    deep = write_run(tmp_path / "a" / "run", *lines(2, 3, grad_norm_block1=1.0))
    flat = write_run(tmp_path / "b" / "run", *lines(3, 1, ema_val_top1=50.0))
    drawn = figure(deep, flat, deep / ".." / "run")
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["a/run", "b/run"]
    by_block, accuracy = (panels(drawn)[t] for t in ("local loss", ACCURACY))
    ends = [by_block.get_lines()[i].get_color() for i in (2, 3)]
    assert [to_rgb(colour) for colour in ends] == [to_rgb(colour) for colour in COLOURS[:2]]
    points = {line.get_linestyle(): line.get_xdata() for line in accuracy.get_lines()[2:]}
    assert {dashes: list(epochs) for dashes, epochs in points.items()} == {
        "-": [1, 2, 3],
        ":": [1, 2, 3],
    }
    assert len(panels(drawn)["norm of the gradient"].get_lines()) == 1


@pytest.mark.parametrize(
    ("x", "expected"), [("epoch", [1, 2]), ("seconds", [2, 4]), ("update", [10, 20])]
)
def test_across_go_epochs_seconds_or_updates(x, expected, tmp_path, figure) -> None:
    drawn = panels(figure(write_run(tmp_path / "run", *lines(2, 1)), x=x))
    assert all(list(axes.get_lines()[0].get_xdata()) == expected for axes in drawn.values())


def test_an_epoch_that_was_not_validated_has_no_point(tmp_path, figure) -> None:
    log = lines(3, 1)
    del log[1]["val_top1"]
    run = write_run(tmp_path / "run", *log)
    accuracy = panels(figure(run))["validation top-1, %"]
    assert list(accuracy.get_lines()[0].get_xdata()) == [1, 3]
    del log[0]["val_top1"], log[2]["val_top1"]
    never = write_run(tmp_path / "never", *log)
    assert set(panels(figure(never))) == {"local loss", "images a second"}
    row = render(read_curves([never])).splitlines()[-1]
    assert row.split()[-3:] == ["-", "-", "-"]


def test_several_runs_are_drawn_in_the_folder_at_hand(tmp_path, monkeypatch) -> None:
    runs = [write_run(tmp_path / name, *lines(1, 2)) for name in ("one", "_two$")]
    monkeypatch.chdir(tmp_path)
    assert run_command(["curves", *map(str, runs)]) == 0
    assert run_command(["curves", *map(str, runs), "--picture", "x.png", "--x", "update"]) == 0
    assert digest_of(tmp_path / "curves.png") != digest_of(tmp_path / "x.png")
    assert not list(tmp_path.glob("*/*.png"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"epoch": 1, "loss_block1": "much"}, "loss_block1: could not convert"),
        ({"epoch": 1, "loss_block1": 10**400}, "loss_block1: int too large"),
        ({"epoch": 1, "loss_block1": 1.0, "val_top1": [3]}, "val_top1: "),
        ({"epoch": 1}, "no line has a loss"),
    ],
)
def test_a_log_that_is_none(line, said, tmp_path) -> None:
    with pytest.raises(UserError, match=f"log.jsonl is damaged: .*{said}"):
        read_curves([write_run(tmp_path / "run", line)])


def test_a_run_at_its_beginning_is_a_sentence(tmp_path, capsys) -> None:
    run = write_run(tmp_path / "run")
    assert run_command(["curves", str(run)]) == 1
    said = f"man-zoo curves: {run} has finished no epoch yet; there is nothing to draw.\n"
    assert capsys.readouterr().err == said
    assert not list(run.glob("*.png"))
