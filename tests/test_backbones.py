from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
from timm.models._manipulate import group_parameters

import man_zoo.backbones  # noqa: F401  registers the models

BLOCKS_PER_STAGE = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
NUM_PARAMS = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def create(name: str = "resnet20", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


class ReferenceBlock(nn.Module):
    """A residual block written out, to compare with."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.downsample = nn.Sequential()
        if in_chans != out_chans:
            projection = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_chans))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (residual + self.downsample(x)).relu()


class ReferenceResNet(nn.Module):
    """The paper's CIFAR network written out, to compare with."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, 1, n)
        self.layer2 = self.stage(16, 32, 2, n)
        self.layer3 = self.stage(32, 64, 2, n)
        self.fc = nn.Linear(64, 10)

    @staticmethod
    def stage(in_chans: int, out_chans: int, stride: int, n: int) -> nn.Sequential:
        rest = [ReferenceBlock(out_chans, out_chans, 1) for _ in range(n - 1)]
        return nn.Sequential(ReferenceBlock(in_chans, out_chans, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("name", BLOCKS_PER_STAGE)
def test_is_the_network_of_the_paper(name: str, images: torch.Tensor) -> None:
    model = create(name)
    reference = ReferenceResNet(BLOCKS_PER_STAGE[name]).eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), reference(images))
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMS[name]


def test_initial_weights() -> None:
    model = create("resnet32", in_chans=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Conv2d):
            variance = 2 / (module.kernel_size[0] ** 2 * module.out_channels)
            assert module.weight.var().item() == pytest.approx(variance, rel=0.35)
    assert model.fc.weight.abs().max() <= 64**-0.5
    assert model.fc.bias.any()


def test_zero_init_last_is_an_option() -> None:
    block = create(zero_init_last=True).layer1[0]
    assert not block.bn2.weight.any()
    assert block.bn1.weight.all()


def test_default_cfg() -> None:
    model = create()
    cfg = timm.data.resolve_data_config(model=model)
    assert cfg["input_size"] == (3, 32, 32)
    assert cfg["crop_pct"] == 1.0
    assert cfg["mean"] == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert cfg["std"] == pytest.approx((0.2471, 0.2435, 0.2616), abs=1e-4)
    assert model.num_classes == 10
    assert model.pretrained_cfg["first_conv"] == "conv1"
    assert model.pretrained_cfg["classifier"] == "fc"


def test_is_listed_without_weights() -> None:
    assert set(BLOCKS_PER_STAGE) <= set(timm.list_models())
    assert not set(BLOCKS_PER_STAGE) & {m.split(".")[0] for m in timm.list_pretrained()}


@pytest.mark.parametrize("size", [28, 96])
def test_other_image_sizes(size: int) -> None:
    features = create().forward_features(torch.randn(1, 3, size, size))
    assert features.shape == (1, 64, size // 4, size // 4)


def test_arguments_reach_the_layers() -> None:
    model = create(
        num_classes=7,
        in_chans=1,
        norm_layer="groupnorm1",
        act_layer="silu",
        global_pool="catavgmax",
        drop_rate=0.5,
        drop_path_rate=0.1,
    )
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    kinds = {type(m) for m in model.modules()}
    assert nn.SiLU in kinds
    assert nn.ReLU not in kinds
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model.fc.in_features == 128
    assert model.drop_rate == 0.5
    assert model.layer1[0].drop_path is None
    assert model.layer3[-1].drop_path.drop_prob == pytest.approx(0.1)


def test_dropout_and_stochastic_depth_only_while_training(images: torch.Tensor) -> None:
    for rate in ("drop_rate", "drop_path_rate"):
        model = create("resnet20", **{rate: 0.5})
        torch.testing.assert_close(model(images), create()(images))
        for module in model.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)  # so that only dropping varies
        assert not torch.equal(model(images), model(images))


def test_output_stride_dilates_the_last_stage(images: torch.Tensor) -> None:
    model = create(output_stride=2)
    assert model.forward_features(images).shape == (2, 64, 16, 16)
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 2]


def test_features_only(images: torch.Tensor) -> None:
    model = create(features_only=True)
    shapes = [tuple(f.shape[1:]) for f in model(images)]
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert model.feature_info.channels() == [16, 32, 64]
    assert model.feature_info.reduction() == [1, 2, 4]
    assert model.feature_info.module_name() == ["layer1", "layer2", "layer3"]


def test_features_only_can_include_the_stem(images: torch.Tensor) -> None:
    model = create(features_only=True, out_indices=(0, -1))
    assert [tuple(f.shape[1:]) for f in model(images)] == [(16, 32, 32), (64, 8, 8)]
    assert model.feature_info.reduction() == [1, 4]
    assert model.feature_info.module_name() == ["act1", "layer3"]


def test_forward_intermediates(images: torch.Tensor) -> None:
    model = create()
    final, features = model.forward_intermediates(images)
    assert [f.shape[1] for f in features] == [16, 16, 32, 64]
    torch.testing.assert_close(final, model.forward_features(images))
    torch.testing.assert_close(features[-1], final)
    last_two = model.forward_intermediates(images, indices=2, intermediates_only=True)
    torch.testing.assert_close(last_two, features[2:])
    stopped, _ = model.forward_intermediates(images, indices=[1], stop_early=True)
    torch.testing.assert_close(stopped, features[1])


@pytest.mark.parametrize(("index", "kept_chans"), [(0, 16), (1, 16), (2, 32), (3, 64)])
def test_prune_intermediate_layers(index: int, kept_chans: int, images: torch.Tensor) -> None:
    model = create()
    (expected,) = model.forward_intermediates(images, [index], intermediates_only=True)
    assert model.prune_intermediate_layers([index]) == [index]
    torch.testing.assert_close(model(images), expected)
    assert model.num_features == kept_chans
    assert [len(getattr(model, f"layer{i}")) for i in (1, 2, 3)] == [
        3 * (i <= index) for i in (1, 2, 3)
    ]


def test_pruning_to_the_last_feature_can_keep_the_head(images: torch.Tensor) -> None:
    model = create()
    logits = model(images)
    model.prune_intermediate_layers(1, prune_head=False)
    torch.testing.assert_close(model(images), logits)


def test_reset_classifier(images: torch.Tensor) -> None:
    model = create()
    assert model.get_classifier() is model.fc
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0)
    features = model.forward_features(images)
    torch.testing.assert_close(model(images), features.mean((2, 3)))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), features)


def test_group_matcher() -> None:
    model = create()
    fine = group_parameters(model, model.group_matcher())
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(fine) == 1 + 9 + 1  # stem, blocks, head
    assert len(coarse) == 1 + 3 + 1  # stem, stages, head
    assert set(fine[0]) == set(coarse[0]) == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert all(name.startswith("layer2.0.") for name in fine[4])
    assert sum(map(len, fine.values())) == len(list(model.parameters()))


def test_grad_checkpointing_gives_equal_results(images: torch.Tensor) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor | None]:
        model = create().train()
        model.set_grad_checkpointing(checkpointing)
        calls = []
        model.layer2[1].register_forward_pre_hook(lambda *_: calls.append(1))
        model(images).square().sum().backward()
        assert len(calls) == 1 + checkpointing  # checkpointing runs a block again going backward
        return [p.grad for p in model.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False))


def test_torchscript(images: torch.Tensor) -> None:
    model = create()
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))


def test_export(images: torch.Tensor) -> None:
    model = create()
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
