"""The meter against graphs whose cost can be worked out by hand, and published anchors."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from man_zoo.meter import LiveBytes, StepCost, backprop_cost, fake, measure

SIZE = 1000
BYTES = 4 * SIZE
SCALAR = 4


def chain(x: torch.Tensor, depth: int) -> torch.Tensor:
    for _ in range(depth):
        x = x.tanh()
    return x


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def sgd_cost(model: nn.Module) -> StepCost:
    images, labels = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return measure(step, resident=[model, optimizer, images, labels])


def test_without_grad_only_the_ends_of_an_operator_live():
    x = torch.zeros(SIZE)
    with LiveBytes() as live, torch.no_grad():
        live.track(x)
        y = chain(x, 4)
    assert live.peak == 3 * BYTES
    assert live.current == 2 * BYTES
    del y
    assert live.current == BYTES


def test_saved_tensors_live_until_backward_frees_them():
    x = torch.zeros(SIZE, requires_grad=True)
    with LiveBytes() as live:
        live.track(x)
        y = chain(x, 4)
        assert live.current == live.peak == 5 * BYTES
        del y
        assert live.current == BYTES


def test_frees_within_backward_are_noticed():
    x = torch.zeros(SIZE, requires_grad=True)
    with LiveBytes() as live:
        live.track(x)
        loss = chain(x, 8).sum()
        live.reset_peak()
        assert live.peak == 9 * BYTES + SCALAR
        loss.backward()
    assert live.peak == 10 * BYTES + 2 * SCALAR
    assert live.current == 2 * BYTES + SCALAR


def test_accumulated_gradients_count_until_set_to_none():
    x = torch.zeros(SIZE, requires_grad=True)
    with LiveBytes() as live:
        for _ in range(2):
            x.sum().backward()
            assert live.current == 2 * BYTES
        x.grad = None
    assert live.current == BYTES


def test_views_and_inplace_operators_add_nothing():
    with LiveBytes() as live:
        x = torch.zeros(SIZE)
        views = [x.view(10, -1), x[5:], x.view(10, -1).t(), x.detach(), x.expand(3, -1)]
        x.add_(1).relu_()
        views[1].mul_(2)
        assert live.current == live.peak == BYTES
        del x
        assert live.current == BYTES
        views.clear()
        assert live.current == 0


def test_a_view_made_beforehand_shares_its_storage():
    x = torch.zeros(SIZE)
    assert LiveBytes().track(x[:3], x, [x.view(10, -1)]).current == BYTES


def test_resize_counts_the_difference():
    x = torch.zeros(SIZE)
    with LiveBytes() as live:
        live.track(x)
        x.resize_(2 * SIZE)
    assert live.current == 2 * BYTES


def test_storages_are_followed_after_the_mode_is_left():
    with LiveBytes() as live:
        x = torch.zeros(SIZE)
    assert live.current == BYTES
    del x
    assert live.current == 0


def test_track_counts_weights_gradients_and_state_once():
    layer = nn.Linear(10, 10, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer.weight.grad = torch.zeros(10, 10)
    optimizer.step()
    live = LiveBytes().track(layer, optimizer, layer.weight, [layer.weight.grad])
    assert live.current == 3 * 400


def test_fake_costs_what_real_costs():
    model = conv_net()
    with fake(model) as faked:
        predicted = sgd_cost(faked)
    assert predicted == sgd_cost(model)


def test_fake_keeps_tied_weights():
    layer = nn.Linear(10, 10, bias=False)
    with fake(nn.Sequential(layer, layer)) as faked:
        assert LiveBytes().track(faked).current == 400


def test_a_measured_step_is_a_steady_one():
    weight = torch.zeros(SIZE, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        weight.tanh().sum().backward()
        optimizer.step()

    weight_momentum_activation_gradient = 4 * BYTES
    peak = weight_momentum_activation_gradient + 2 * SCALAR
    assert measure(step, resident=[optimizer]) == StepCost(peak, 0)


def test_checkpoint_trades_arithmetic_for_memory():
    layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Tanh()) for _ in range(6))
    x = torch.zeros(512, 8, requires_grad=True)

    def step(recompute: bool):
        h = x
        for layer in layers:
            h = checkpoint(layer, h, use_reentrant=False) if recompute else layer(h)
        h.sum().backward()

    plain = measure(lambda: step(False), resident=[layers, x])
    saved = measure(lambda: step(True), resident=[layers, x])
    assert saved.peak_bytes < 0.7 * plain.peak_bytes
    assert saved.flops * 3 == plain.flops * 4


def test_flops_of_a_linear_layer():
    layer, x = nn.Linear(5, 7), torch.zeros(3, 5)
    forward_and_weight_gradient = 2 * (2 * 3 * 5 * 7)
    cost = measure(lambda: layer(x).sum().backward(), resident=[layer, x])
    assert cost.flops == forward_and_weight_gradient


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_flops_of_a_convolution_do_not_grow_with_its_groups(kind, groups):
    layer = kind(8, 16, 3, stride=2, padding=1, groups=groups, bias=False)
    x = torch.zeros(3, 8, 12, 12, requires_grad=True)
    taps = 9 * (16 // groups if kind is nn.ConvTranspose2d else 8 // groups)
    forward = 2 * taps * (x if kind is nn.ConvTranspose2d else layer(x)).numel()
    inputs_and_weights = measure(lambda: layer(x).sum().backward(), resident=[layer, x])
    weights = measure(lambda: layer(x.detach()).sum().backward(), resident=[layer, x])
    assert (inputs_and_weights.flops, weights.flops) == (3 * forward, 2 * forward)


def test_all_but_grouped_convolutions_count_as_torch_counts_them():
    model = timm.create_model("test_vit").train()  # attention, linear layers and a convolution
    x = torch.zeros(2, 3, 160, 160)
    with FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    assert measure(lambda: model(x).sum().backward(), resident=[]).flops == theirs.get_total_flops()


@pytest.mark.parametrize(
    ("name", "gib", "checkpointed_gib", "arithmetic"),
    [("resnet101", 15.56, 6.02, 1.33), ("vit_base_patch16_224", 14.96, 3.04, 1.22)],
)
def test_anchors_at_batch_128(name, gib, checkpointed_gib, arithmetic):
    batch = (128, 3, 224, 224)
    model = timm.create_model(name)
    plain = backprop_cost(model, batch)
    model.set_grad_checkpointing()
    saved = backprop_cost(model, batch)
    assert plain.peak_gib == pytest.approx(gib, abs=0.005)
    assert saved.peak_gib == pytest.approx(checkpointed_gib, abs=0.005)
    assert saved.flops / plain.flops == pytest.approx(arithmetic, abs=0.005)
