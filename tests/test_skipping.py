"""--skip-bad-images: what cannot be read is left out, counted and named, the same every time."""

import json
from pathlib import Path

import pytest
import recipe
import torch
from small_data import loaders, write_images
from test_images import complaint, flags, truncated

from man_zoo.commands.evaluate import evaluate_weights, parse_args
from man_zoo.console import exit_status

SKIP = "--skip-bad-images"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten images of each of two classes in each split; bad: two for training, one to validate."""
    for split in ("train", "val"):
        write_images(tmp_path / split, size=8)
    for name in ("train/cat/0", "train/dog/3", "val/cat/0"):
        truncated(tmp_path / f"{name}.png")
    return tmp_path


def read(*words, epoch=1, start=0):
    """Batches of both loaders, and what was left out."""
    train, val, info = loaders(*words)
    train.set_epoch(epoch, start)
    return list(train), list(val), (train.bad_images, val.bad_images), info


def same(batches, others) -> bool:
    return len(batches) == len(others) and all(
        torch.equal(x, u) and torch.equal(y, v)
        for (x, y), (u, v) in zip(batches, others, strict=True)
    )


def assert_told(bad, folder) -> None:
    for told, names in zip(bad, (["train/cat/0", "train/dog/3"], ["val/cat/0"]), strict=True):
        starts = [f"{folder / name}.png cannot be used: " for name in names]
        assert [s.startswith(start) for s, start in zip(sorted(told), starts, strict=True)]


def test_in_memory_they_are_no_part_of_the_set(folder):
    train, val, bad, info = read(*flags(folder, "on"), SKIP)
    assert (info.train_count, info.val_count) == (18, 19)
    assert [len(y) for _, y in train] == [2] * 9
    assert sum(len(y) for _, y in val) == 19
    assert_told(bad, folder)


def test_from_disk_batches_stay_full_whatever_the_workers(folder):
    words = [*flags(folder, "off"), "-b", 4, SKIP]
    train, val, bad, _ = read(*words)
    assert [len(y) for _, y in train] == [4] * 5
    assert sum(len(y) for _, y in val) == 19
    assert_told(bad, folder)
    for workers in (1, 2):
        others = read(*words, "--workers", workers)
        assert same(train, others[0])
        assert same(val, others[1])
        assert others[2] == bad
    assert same(read(*words, start=3)[0], train[3:])


def test_the_place_goes_to_the_next_image_of_the_batch(folder):
    train, *_ = read(*flags(folder, "off"), "-b", 20, SKIP, "--no-aug")
    [(images, targets)] = train
    alike = (images.flatten(1)[:, None] == images.flatten(1)[None]).all(2)
    pairs = (alike.triu(1)).nonzero()
    assert len(pairs) == 2
    for first, second in pairs.tolist():
        assert (second - first) % len(images) in (1, len(images) - 1)
        assert targets[first] == targets[second]


def test_a_batch_of_none_is_left_out_of_validation_and_refused_in_training(folder):
    _, val, _, _ = read(*flags(folder, "off"), "-b", 4, "-vb", 1, SKIP)
    assert len(val) == 19
    assert "cannot be used" in complaint(read, *flags(folder, "off"), "-b", 1, SKIP)


def test_a_set_of_none_is_refused(folder):
    for path in (folder / "val").rglob("*.png"):
        truncated(path)
    assert "cannot be used" in complaint(loaders, *flags(folder, "on"), SKIP)


def test_a_stream_is_refused(folder):
    words = flags(folder, "off", dataset="hfids/user/name")
    with pytest.raises(ValueError, match=r"--skip-bad-images|could not be opened"):
        loaders(*words, SKIP)


def test_evaluation_counts_what_it_has_seen(folder):
    words = ["resnet20_man_dgl_k4.digits", *flags(folder, "off"), "--val-split", "val"]
    assert evaluate_weights(parse_args([*map(str, words), SKIP]))["count"] == 19


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_run_that_met_a_bad_image_goes_on_without_it(memory, tmp_path, capsys):
    data = recipe.write_images(tmp_path / "data")
    bad = [data / "train" / "class2" / "23.png", data / "test" / "class0" / "9.png"]
    for path in bad:
        truncated(path)
    words = recipe.flags(data, tmp_path, "--in-memory", memory, "--workers", "1", "--epochs", "2")
    assert exit_status("train.py", lambda: recipe.train_here(*words)) == 1
    assert "not processed); --skip-bad-images leaves such images out" in capsys.readouterr().err
    if memory == "off":
        words = ["--resume", str(tmp_path / "run")]
    assert recipe.train_here(*words, SKIP)["count"] == 9
    said = capsys.readouterr().out
    for kind, path in zip(("training", "validation"), bad, strict=True):
        assert said.count(f"1 {kind} image(s) left out: {path} cannot be used: ") == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["bad_images"], line["val_bad_images"]) for line in lines] == [(1, 1)] * 2
