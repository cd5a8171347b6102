"""Random numbers that follow from a key."""

import pytest
import torch
from torch import nn

import man_zoo
from man_zoo.draws import drawn_from

CPU = torch.device("cpu")


def draw(*key: int) -> torch.Tensor:
    with drawn_from(*key, device=CPU):
        return torch.rand(4)


def test_equal_keys_draw_equal_numbers_whatever_was_drawn_before():
    first = draw(0, 1, 2)
    torch.rand(3)
    assert torch.equal(draw(0, 1, 2), first)
    assert not any(torch.equal(draw(*key), first) for key in [(0, 1, 3), (0, 2, 1), (1, 1, 2)])


def test_what_is_drawn_elsewhere_goes_on_as_before():
    torch.manual_seed(0)
    expected = torch.rand(2, 4)
    torch.manual_seed(0)
    numbers = torch.rand(4)
    draw(5)
    assert torch.equal(torch.stack([numbers, torch.rand(4)]), expected)


@pytest.mark.parametrize("method", ["dgl", "man_dgl"])
def test_a_block_draws_the_same_without_the_blocks_before_it(method):
    model = man_zoo.localize(
        "vit_tiny_patch16_224", method, 4, img_size=32, drop_path_rate=0.5, num_classes=3
    )
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(1)
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, outputs: tuple) -> None:
        kept.append(inputs[0])

    model.blocks[2].register_forward_hook(keep)
    expected = model.local_step(images, target, key=(0, 7)).losses[2]
    torch.manual_seed(2)
    with drawn_from(0, 7, 2, device=CPU):
        _, loss, _ = model.blocks[2](kept[0], target)
    assert torch.equal(loss.detach(), expected)
    assert not torch.equal(model.local_step(images, target, key=(0, 8)).losses[2], expected)
