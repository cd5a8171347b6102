"""Every family that can be split: its units are its forward pass, and every method trains it."""

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.layers import Format
from timm.models.resnet import ResNet
from torch import Tensor, nn

import man_zoo
from man_zoo.families import ADAPTERS, Units, list_units, unit_shapes
from man_zoo.families.table import Row, render, survey


@dataclass(frozen=True, eq=False)  # compared by identity: it has a dict
class Case:
    """A small model of a family.

    Args:
        name: timm name.
        keywords: What makes it small.
        size: Height and width of its images, in pixels.
        builds: Whether the family builds units of other widths or, with one width, copies.
        every_method: Whether every method is tried, or the few that differ most.
    """

    name: str
    size: int = 32
    builds: bool = False
    every_method: bool = True
    keywords: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


TINY_VIT = {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2}
TINY_SWIN = {"img_size": 32, "depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2)}
TINY_SWIN |= {"window_size": 4}
SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}

CASES = [
    Case("test_resnet", builds=True),
    Case("resnetv2_18", builds=True, keywords={"channels": (32, 32, 64, 64), "stem_chs": 32}),
    Case("regnety_002", 64, builds=True),
    Case("test_byobnet", 64, every_method=False),
    Case("test_nfnet", every_method=False),
    Case("densenet121", keywords={"growth_rate": 8, "block_config": (2, 2, 2)}),
    Case("vgg11_bn", builds=True, keywords={"mlp_ratio": 0.01}),
    Case("ese_vovnet19b_slim_dw", 64, every_method=False),
    Case("hgnetv2_b0", 64, every_method=False),
    Case("test_efficientnet", 64, builds=True),
    Case("mobilenetv3_small_050", 64, builds=True),
    Case("mobilenetv4_conv_small_035", 64, builds=True),
    Case("ghostnet_050", 32, every_method=False),
    Case("test_convnext", 64, builds=True),
    Case(
        "convnextv2_atto",
        64,
        builds=True,
        keywords=SMALL,
    ),
    Case("inception_next_atto", 64, every_method=False, keywords=SMALL),
    Case("test_mambaout", 64, every_method=False),
    Case("test_maxvit", 64, every_method=False, keywords={"img_size": 64}),
    Case("test_coatnet", 64, every_method=False, keywords={"img_size": 64}),
    Case("swin_tiny_patch4_window7_224", keywords=TINY_SWIN),
    Case("swinv2_tiny_window8_256", keywords=TINY_SWIN),
    Case("mixer_s32_224", 64, builds=True, keywords={"img_size": 64, "mlp_ratio": (0.1, 0.1)}),
    Case("vit_tiny_patch16_224", builds=True, keywords=TINY_VIT),
    Case("deit_tiny_distilled_patch16_224", builds=True, keywords=TINY_VIT),
    Case("beit_base_patch16_224", builds=True, keywords=TINY_VIT),
    Case("test_vit_relpos", builds=True, every_method=False, keywords={"img_size": 32, "depth": 4}),
    Case("eva02_tiny_patch14_224", 28, builds=True, keywords=TINY_VIT | {"img_size": 28}),
    Case("vit_small_patch16_dinov3", builds=True, keywords=TINY_VIT),
    Case("cait_xxs24_224", builds=True, every_method=False, keywords=TINY_VIT),
]
# Models of the same classes that are larger, or run other code: only their forward pass is tested.
VARIANTS = [
    Case("resnetv2_50x1_bit"),
    Case("seresnet50"),
    Case("resnetaa50d"),
    Case("res2net50_14w_8s"),
    Case("resnext26ts", 64),
    Case("vgg11", keywords={"mlp_ratio": 0.01}),
    Case("densenetblur121d"),
    Case("test_efficientnet_evos", 64),
    Case("tf_mixnet_s", 64),
    Case("mobilenetv4_hybrid_medium", 64),
    Case("mobileone_s0", 64),
    Case("test_convnext3", 64),
    Case("gmlp_ti16_224", keywords={"img_size": 32}),
    Case("resmlp_12_224", keywords={"img_size": 32}),
    Case("convmixer_768_32"),
    Case("test_vit2", keywords={"img_size": 32}),
]

cases = pytest.mark.parametrize("case", CASES, ids=str)
every_model = pytest.mark.parametrize("case", CASES + VARIANTS, ids=str)


def create(case: Case) -> Any:
    return timm.create_model(case.name, num_classes=10, **case.keywords)


@cache
def plain(case: Case) -> Any:
    """A timm model in eval mode whose every parameter is far from its initial value."""
    torch.manual_seed(0)
    model = create(case).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def localize(case: Case, method: str, k: int = 2, **keywords: Any) -> man_zoo.LocalModel:
    torch.manual_seed(0)
    settings = {"img_size": case.size} | case.keywords | keywords
    return man_zoo.localize(case.name, method, k, num_classes=10, **settings).train()


def batch(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, case.size, case.size, generator=generator), torch.arange(4)


def run(units: Units, x: Tensor) -> list[Tensor]:
    outputs = []
    with torch.no_grad():
        for unit in units.modules:
            x = unit(x)
            outputs.append(x)
    return outputs


def channels(units: Units, x: Tensor) -> int:
    return units.layout.to_map(x).shape[1]


# The units are the backbone -----------------------------------------------------------------------


@every_model
@torch.no_grad()
def test_stem_units_and_head_are_the_forward_pass(case: Case) -> None:
    model, (images, _) = plain(case), batch(case)
    units = list_units(model)
    assert torch.equal(units.head(run(units, images)[-1]), model(images))


@every_model
def test_units_share_the_backbones_parameters_and_names(case: Case) -> None:
    model = plain(case)
    units = list_units(model)
    assert units.names[0] == "stem"
    assert len(set(units.names)) == len(units.modules)
    by_unit = [{id(p) for p in unit.parameters()} for unit in (*units.modules, units.head)]
    assert sum(map(len, by_unit)) == len(set().union(*by_unit))  # none in two units
    assert set().union(*by_unit) == {id(p) for p in model.parameters()}
    for name, ids in zip(units.names[1:], by_unit[1:], strict=False):
        assert ids & {id(p) for p in model.get_submodule(name).parameters()}, name


@cases
def test_a_copy_of_a_unit_is_on_its_own(case: Case) -> None:
    units = list_units(plain(case))
    inputs = [batch(case)[0], *run(units, batch(case)[0])]
    for unit, x in zip(units.modules[1:], inputs[1:], strict=False):
        twin = copy.deepcopy(unit)
        assert sum(p.numel() for p in twin.parameters()) == sum(
            p.numel() for p in unit.parameters()
        )
        with torch.no_grad():
            assert torch.equal(twin(x), unit(x))
            for parameter in twin.parameters():
                parameter.zero_()
        assert all(p.any() for p in unit.parameters())


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if list_units(plain(case)).layout.format is not Format.NCHW],
    ids=str,
)
@torch.no_grad()
def test_the_layout_gives_the_map_that_timm_gives(case: Case) -> None:
    model, (images, _) = plain(case), batch(case)
    units = list_units(model)
    wanted = model.forward_intermediates(images, indices=1, intermediates_only=True)[-1]
    last = run(units, images)[-1]
    assert torch.equal(units.layout.to_map(last), wanted)
    if units.layout.format is Format.NHWC:
        torch.testing.assert_close(units.layout.to_vector(last), wanted.mean((2, 3)))
    vector = torch.arange(wanted.shape[1], dtype=torch.float)
    shifted = units.layout.to_map(last + units.layout.per_channel(vector))
    torch.testing.assert_close(shifted - wanted, vector[:, None, None].expand_as(wanted))


REGISTERS = "vit_medium_patch16_reg4_gap_256"  # four register tokens and no class token


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        (REGISTERS, {}),
        *(("vit_tiny_patch16_224", {"global_pool": p}) for p in ("token", "avg", "max", "avgmax")),
        ("eva02_tiny_patch14_224", {"img_size": 28}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "global_pool": "token"}),
        ("vit_small_patch16_dinov3", {}),
        ("beit_base_patch16_224", {}),
        ("beit_base_patch16_224", {"global_pool": "token"}),
        ("vit_relpos_base_patch16_cls_224", {}),
        ("vit_relpos_base_patch16_clsgap_224", {}),
        ("mixer_s32_224", {"img_size": 64}),
    ],
)
def test_tokens_are_pooled_as_the_backbone_pools_them(name: str, keywords: dict[str, Any]) -> None:
    tiny = {"img_size": 32} if name.startswith("mixer") else TINY_VIT
    model = timm.create_model(name, **(tiny | keywords)).eval()
    model.fc_norm = nn.Identity()
    model.reset_classifier(0)
    tokens = torch.randn(2, getattr(model, "num_prefix_tokens", 0) + 4, model.num_features)
    assert torch.equal(list_units(model).layout.to_vector(tokens), model.forward_head(tokens))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "test_vit3", "cait_xxs24_224"])
def test_where_pooling_has_weights_tokens_are_averaged(name: str) -> None:
    layout = list_units(timm.create_model(name, img_size=32)).layout
    tokens = torch.randn(2, layout.prefix_tokens + 4, 24)
    torch.testing.assert_close(layout.to_vector(tokens), layout.to_map(tokens).mean((2, 3)))


# Images of other sizes ----------------------------------------------------------------------------

DYNAMIC = ["vit_tiny_patch16_224", REGISTERS, "vit_small_patch16_dinov3"]


def dynamic(name: str, **keywords: Any) -> man_zoo.LocalModel:
    keywords = TINY_VIT | {"dynamic_img_size": True, "head": "wide"} | keywords
    return man_zoo.localize(name, "man_dgl", 2, num_classes=10, **keywords).train()


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_dynamic_network_learns_from_images_of_other_sizes(name: str) -> None:
    model = dynamic(name, img_size=(32, 64))
    for size in ((32, 64), (64, 128)):
        images = torch.randn(2, 3, *size)
        assert model.local_step(images, torch.arange(2)).losses.isfinite().all()
        exits = model.eval().forward_exits(images)
        torch.testing.assert_close(exits[-1], model.train().backbone.eval()(images))


@pytest.mark.parametrize("name", DYNAMIC)
def test_images_of_other_proportions_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"^6 patch tokens are no 2x2 grid, .*proportions.*\.$"):
        dynamic(name).local_step(torch.randn(2, 3, 32, 48), torch.arange(2))


def test_dropped_patches_make_no_map() -> None:
    for keywords in ({}, {"dynamic_img_size": False}):
        model = dynamic("vit_tiny_patch16_224", img_size=64, patch_drop_rate=0.75, **keywords)
        with pytest.raises(ValueError, match=r"^4 patch tokens are no 4x4 grid, "):
            model.local_step(torch.randn(2, 3, 64, 64), torch.arange(2))


# Weights of copies and of new units --------------------------------------------------------------

# Their networks scale some weights by depth, or start some residual branches at zero.
OWN_START = ("test_resnet", "beit_base_patch16_224", "eva02_tiny_patch14_224")
OWN_START += ("vit_small_patch16_dinov3", "regnety_002")


@cases
def test_init_draws_every_weight_as_the_family_does(case: Case) -> None:
    torch.manual_seed(2)
    units, reference = list_units(create(case)), list_units(create(case))
    for unit, other in zip(units.modules[1:], reference.modules[1:], strict=True):
        with torch.no_grad():
            for parameter in unit.parameters():
                parameter.fill_(7.0)
        units.init(unit)
        for (name, drawn), wanted in zip(unit.named_parameters(), other.parameters(), strict=True):
            assert (drawn != 7).all(), name
            if case.name in OWN_START:
                continue
            if wanted.numel() < 2 or wanted.std() == 0:
                assert torch.equal(drawn, wanted), name
            elif wanted.numel() >= 256:
                torch.testing.assert_close(drawn.std(), wanted.std(), rtol=0.25, atol=0), name


@pytest.mark.parametrize("case", [case for case in CASES if case.builds], ids=str)
def test_build_makes_units_like_the_given_one(case: Case) -> None:
    units = list_units(plain(case))
    outputs = run(units, batch(case)[0])
    widths = [channels(units, x) for x in outputs]
    for i in range(1, len(units)):
        same = units.build(units.modules[i], widths[i], widths[i], 1).eval()
        assert same(outputs[i]).shape == outputs[i].shape
        if outputs[i - 1].shape == outputs[i].shape:
            count = [sum(p.numel() for p in unit.parameters()) for unit in (same, units.modules[i])]
            assert count[0] == count[1], units.names[i]
        if units.layout.format is Format.NCHW:
            wider = units.build(units.modules[i], widths[i], widths[-1], 2).eval()
            shape = wider(outputs[i]).shape
            assert shape[1] == widths[-1]
            assert shape[2] in (outputs[i].shape[2] // 2, -(-outputs[i].shape[2] // 2))


# Training -----------------------------------------------------------------------------------------

METHODS = {
    "dgl": ("dgl", {}),
    "infopro": ("infopro", {}),
    "predsim": ("predsim", {}),
    "auglocal": ("auglocal", {"aux_depth": 1}),
    "man_dgl release": ("man_dgl", {"form": "release"}),
    "man_dgl paper": ("man_dgl", {"form": "paper"}),
    "man_infopro": ("man_infopro", {}),
    "manpp_dgl": ("manpp_dgl", {}),
}
FEW = ("auglocal", "man_infopro")


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in CASES for name in METHODS if case.every_method or name in FEW],
    ids=str,
)
def test_a_step_of_every_method_gives_finite_losses(case: Case, name: str) -> None:
    method, keywords = METHODS[name]
    if method == "auglocal" and not case.builds:
        with pytest.raises(ValueError, match="cannot build a new"):
            localize(case, method, **keywords)
        return
    output = localize(case, method, **keywords).local_step(*batch(case))
    assert output.losses.shape == (2,)
    assert output.losses.isfinite().all()
    assert output.logits.shape == (4, 10)


@cases
def test_every_unit_may_be_a_block_and_gradients_stay_inside(case: Case) -> None:
    k = len(list_units(plain(case)))
    model = localize(case, "man_dgl", k)
    assert model.unit_names == list_units(plain(case)).names
    features, target = batch(case)
    for block in model.blocks:
        model.zero_grad()
        features, loss, _ = block(features, target)
        loss.backward()
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        assert {id(p) for p in block.units.parameters()} <= reached
        assert reached <= {id(p) for p in block.parameters()}
        assert loss.isfinite()
        assert not features.requires_grad
    for link in model.links:
        link.update()


@cases
def test_the_trained_backbone_loads_strictly_into_timm_and_answers_alike(case: Case) -> None:
    model = localize(case, "man_dgl")
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.01)
    model.local_step(*batch(case))
    optimizer.step()
    other = create(case)
    other.load_state_dict(model.backbone.state_dict(), strict=True)
    images, _ = batch(case)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), other.eval()(images))


def test_a_network_that_takes_any_size_learns_at_the_size_that_is_given() -> None:
    keywords = {"depth": 4, "embed_dim": 24, "num_heads": 2}
    case = Case("vit_small_patch16_dinov3", 48, keywords=keywords)
    model = localize(case, "infopro")
    assert model.local_step(*batch(case)).losses.isfinite().all()


# What cannot be split or built --------------------------------------------------------------------


def test_a_family_without_adapter_is_refused_with_the_families_that_have_one() -> None:
    with torch.device("meta"):
        model = timm.create_model("xcit_nano_12_p16_224")
    with pytest.raises(ValueError, match="Xcit cannot be split: man_zoo splits ResNet, ") as error:
        list_units(model)
    assert all(family.__name__ in str(error.value) for family in ADAPTERS)


def test_a_subclass_with_another_forward_pass_is_refused() -> None:
    class Doubled(ResNet):
        def forward_features(self, x: Tensor) -> Tensor:
            return 2 * super().forward_features(x)

    model = Doubled(timm.models.resnet.BasicBlock, (1, 1, 1, 1))
    with pytest.raises(ValueError, match="it changes forward_features of ResNet"):
        list_units(model)


@pytest.mark.parametrize(
    ("name", "keywords", "option"),
    [
        ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True}, "use_shared_rel_pos_bias"),
        ("test_vit_relpos", {"shared_rel_pos": True}, "shared_rel_pos"),
        ("vit_small_patch16_rope_mixed_224", {}, "rope_type='mixed'"),
        ("vit_small_patch16_dinov3", {"rope_rescale_coords": 2.0}, "rope_rescale_coords"),
        ("eva02_tiny_patch14_224", {"patch_drop_rate": 0.1}, "patch_drop_rate"),
    ],
)
def test_blocks_that_share_a_tensor_are_refused(
    name: str, keywords: dict[str, Any], option: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **keywords)
    with pytest.raises(ValueError, match=f"{option}.* cannot be split: its blocks share a tensor"):
        list_units(model)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("swin_tiny_patch4_window7_224", 192),
        ("res2net50_14w_8s", 512),
        ("ecaresnet50d_pruned", 171),
        ("tf_mixnet_s", 24),
        ("regnety_002", 57),
    ],
)
def test_units_that_the_family_cannot_build_are_refused_in_a_sentence(
    name: str, width: int
) -> None:
    with torch.device("meta"):
        units = list_units(timm.create_model(name))
        with pytest.raises(ValueError, match=r"^man_zoo cannot build a new \w+[^.]*\.$"):
            units.build(units.modules[2], 64, width, 1)


def test_learnable_units_need_a_family_that_builds() -> None:
    case = next(case for case in CASES if case.name == "densenet121")
    with pytest.raises(ValueError, match="cannot build a new DenseBlock"):
        localize(case, "man_dgl", 3, learnable_units=1)


def test_a_learnable_unit_after_one_that_halves_the_size_keeps_the_size() -> None:
    case = next(case for case in CASES if case.name == "swin_tiny_patch4_window7_224")
    cuts = {"cuts": "layers.0.blocks.1"}  # the next unit begins with patch merging
    model = localize(case, "man_dgl", learnable_units=1, **cuts)
    assert model.local_step(*batch(case)).losses.isfinite().all()


# The page of all models ---------------------------------------------------------------------------


def test_the_page_counts_units_and_names_what_is_not_split() -> None:
    rows = survey(["test_vit", "test_vit3", "test_mambaout", "xcit_nano_12_p16_224"])
    assert rows[0] == Row("test_vit", "VisionTransformer", 7, "NLC, prefix")
    page = render(rows)
    assert "man_zoo splits 3 of the 4 models" in page
    assert "| VisionTransformer | 2 | 7 to 10 | `test_vit` | NLC, prefix |" in page
    assert "| MambaOut | 1 | 7 | `test_mambaout` | NHWC |" in page
    assert "**VisionTransformer**: test_vit 7, test_vit3 10\n" in page
    assert page.endswith("| Xcit | 1 | `xcit_nano_12_p16_224` |\n")


@pytest.mark.parametrize("name", ["test_vit", "densenet121", "vgg11_bn", "test_convnext"])
def test_images_that_are_too_small_get_a_sentence(name):
    keywords = {"dynamic_img_size": True} if name == "test_vit" else {}
    with torch.device("meta"):
        backbone = timm.create_model(name, **keywords)
    with pytest.raises(ValueError, match=r"^\w+ takes no images of 1 x 1 pixels: .+$"):
        unit_shapes(backbone, (3, 1, 1))


def test_images_of_another_size_than_the_model_get_a_sentence():
    with pytest.raises(ValueError, match="VisionTransformer takes no images of 16 x 24 pixels: "):
        unit_shapes(timm.create_model("test_vit"), (3, 16, 24))
