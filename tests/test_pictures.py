"""Pictures of masks and boxes: every pixel where it belongs, and a file that is whole."""

import numpy as np
import pytest
import torch
from PIL import Image

from man_zoo.data.__main__ import main
from man_zoo.tasks.pictures import draw_boxes, draw_masks, palette, save_picture

MEAN, STD = (0.5,) * 3, (0.25,) * 3
GAP = 6


def grey(level, count=2, size=(64, 32)):
    """Images whose every pixel shows ``level`` of 255."""
    return torch.full((count, 3, *size), (level / 255 - 0.5) / 0.25)


def test_masks_lie_over_their_images():
    masks = torch.zeros(2, 64, 32, dtype=torch.long)
    masks[:, :, 16:], masks[1, :32] = 1, 255
    picture = np.asarray(draw_masks(grey(100), [masks, 1 - masks.clamp(max=1)], "ab", MEAN, STD))
    width, height = 32 * 4 + GAP, 64 * 4 + GAP  # enlarged to 256
    assert picture.shape[1] == 3 * width + GAP
    colours = palette(2)

    def at(row, column, y, x):
        return picture[GAP + row * height + 4 * y + 1, GAP + column * width + 4 * x + 1].tolist()

    def over(colour):
        return pytest.approx([0.4 * 100 + 0.6 * value for value in colour], abs=1)

    assert at(0, 0, 10, 10) == [100, 100, 100]
    assert at(0, 1, 63, 15) == over(colours[0])
    assert at(0, 1, 63, 16) == over(colours[1])
    assert at(0, 2, 63, 16) == over(colours[0])
    assert at(1, 1, 31, 5) == [0, 0, 0]
    assert at(1, 1, 32, 5) == over(colours[0])


def test_boxes_are_drawn_where_they_are():
    truth = torch.tensor([[[4, 8, 20, 40, 1], [0, 0, 0, 0, -1]]]).float()
    found = [torch.tensor([[2, 2, 30, 30, 0.8, 0]])]
    picture = np.asarray(draw_boxes(grey(50, 1), [truth, found], ("cat", "dog"), MEAN, STD))
    colours = palette(2)
    width = 32 * 4 + GAP
    assert picture[GAP + 100, GAP + width + 4 * 4].tolist() == list(colours[1])  # left edge
    assert picture[GAP + 100, GAP + 2 * width + 2 * 4].tolist() == list(colours[0])
    assert (picture[GAP : GAP + 256, GAP : GAP + 128] == 50).all()


def test_nothing_found():
    none = [torch.zeros(0, 6)]
    picture = np.asarray(draw_boxes(grey(50, 1), [none], ("cat",), MEAN, STD))
    assert (picture[GAP:-GAP, GAP + 128 + GAP : -GAP] == 50).all()


@pytest.mark.parametrize("count", [1, 3, 6, 7, 21, 150])
def test_colours_differ(count):
    assert len(set(palette(count))) == count


def test_a_picture_is_whole(tmp_path):
    save_picture(Image.new("RGB", (4, 3)), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (4, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_command_draws_what_it_describes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("man_zoo.data.__main__.throughput", lambda loader: 1.0)
    path = tmp_path / "scenes.png"
    words = ["--train-num-samples", "4", "-b", "2", "-j", "0", "--picture", str(path)]
    for task in ("segmentation", "detection"):
        assert main(["--task", task, *words], "data") == 0
        assert Image.open(path).height > 2 * 256
    assert "task='detection'" in capsys.readouterr().out
    assert main(words[2:], "data") == 1
    assert "--picture is for segmentation and detection" in capsys.readouterr().err
