"""Zoo names through timm: listed, built with timm's keywords, refused in a sentence."""

import functools
import itertools
import re

import pytest
import timm
import torch

import man_zoo
from man_zoo.registry import ZOO
from man_zoo.spec import is_zoo_name, list_methods, parse_name
from man_zoo.split import PUBLISHED_CUTS, block_ranges, choose_cuts

VIT = "vit_tiny_patch16_224_man_dgl_k2"
SMALL = ("resnet20", "resnet32")
LARGE = [
    "resnet110_man_dgl_k55",
    "resnet110_predsim_k4",
    "resnet50_man_infopro_k4",
    "resnet101_manpp_dgl_k4",
    "resnet152_auglocal_k4",
    "resnext101_32x8d_man_predsim_k2",
    "vit_small_patch16_224_manpp_dgl_k4",
    "vit_base_patch16_224_man_infopro_k4",
    "vit_base_patch16_224_e2e_k1",
]


def zoo_names(backbone: str) -> list[str]:
    return [name for name in timm.list_models(f"{backbone}_*") if is_zoo_name(name)]


@functools.cache
def unit_names(backbone: str) -> tuple[str, ...]:
    with torch.device("meta"):
        return man_zoo.localize(backbone, "e2e").unit_names


# Names --------------------------------------------------------------------------------------------


def test_timm_lists_the_zoo() -> None:
    names = timm.list_models("*_man_*")
    assert "resnet110_man_dgl_k55" in names
    assert "resnet101_man_infopro_k4" in names
    assert all(is_zoo_name(name) for name in names)


def test_every_method_is_registered_for_every_backbone_and_k() -> None:
    for backbone, ks in ZOO.items():
        ends = {f"{method}_k{k}" for method in list_methods() if method != "e2e" for k in ks}
        wanted = {f"{backbone}_{end}" for end in ends | {"e2e_k1"}}
        assert wanted == set(zoo_names(backbone))


def test_a_name_says_backbone_method_and_k() -> None:
    assert parse_name("vit_base_patch16_224_manpp_dgl_k4") == (
        "vit_base_patch16_224",
        "manpp_dgl",
        4,
    )
    spec = timm.create_model("resnet20_man_dgl_k4").spec
    assert (spec.backbone, spec.method, spec.k, spec.base) == ("resnet20", "man_dgl", 4, "dgl")
    assert spec.name == "resnet20_man_dgl_k4"


def test_register_adds_names_for_any_backbone() -> None:
    names = man_zoo.register("resnet44", (2, 3), ["dgl", "man_dgl"])
    assert names == [
        "resnet44_dgl_k2",
        "resnet44_dgl_k3",
        "resnet44_man_dgl_k2",
        "resnet44_man_dgl_k3",
    ]
    assert all(timm.is_model(name) for name in names)
    assert len(timm.create_model(names[-1]).blocks) == 3


@pytest.mark.parametrize("name", [n for backbone in SMALL for n in zoo_names(backbone)])
def test_small_zoo_models_build(name: str) -> None:
    model = timm.create_model(name)
    _, method, k = parse_name(name)
    wanted = k if not method.endswith("auglocal") else len(model.cuts) + 1
    assert len(model.blocks) == len(model.auxiliaries) + 1 == wanted
    assert bool(model.links) == method.startswith("man")


@pytest.mark.parametrize("name", LARGE)
def test_large_zoo_models_build(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(model.blocks) == len(model.cuts) + 1


# Cuts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "k"), PUBLISHED_CUTS)
def test_published_cuts_exist_and_give_k_blocks(backbone: str, k: int) -> None:
    names = unit_names(backbone)
    cuts = choose_cuts(backbone, names, k, "published")
    assert len(cuts) == k - 1
    assert [*cuts] == sorted(set(cuts))
    assert cuts == choose_cuts(backbone, names, k)
    assert " ".join(names[cut].removeprefix("layer") for cut in cuts) == PUBLISHED_CUTS[backbone, k]


@pytest.mark.parametrize(("backbone", "k"), [("resnet32", 16), ("resnet110", 55)])
def test_at_the_largest_k_every_unit_is_a_block(backbone: str, k: int) -> None:
    names = unit_names(backbone)
    assert choose_cuts(backbone, names, k) == tuple(range(k - 1))


def test_a_vit_in_four_is_cut_every_three_blocks() -> None:
    names = unit_names("vit_tiny_patch16_224")
    cuts = [names[cut] for cut in choose_cuts("vit_tiny_patch16_224", names, 4)]
    assert cuts == ["blocks.2", "blocks.5", "blocks.8"]


@pytest.mark.parametrize("k", range(1, 17))
def test_an_even_split_has_blocks_of_like_size(k: int) -> None:
    cuts = choose_cuts("resnet32", unit_names("resnet32"), k, "even")
    edges = [-1 if k == 16 else 0, *cuts, 15]
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    assert sum(sizes) == 15 + (k == 16)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "cuts", ["layer1.0 layer2.1", "layer2.1, layer1.0", ["layer1.0", "layer2.1"]]
)
def test_cuts_are_given_by_name(cuts) -> None:
    model = timm.create_model("resnet20_man_dgl_k4", k=3, cuts=cuts)
    assert model.cuts == (1, 5)


@pytest.mark.parametrize(
    ("cuts", "blocks"), [((), ["abcdef"]), ((1, 4), ["ab", "cde", "f"]), ((0,), ["a", "bcdef"])]
)
def test_blocks_run_from_cut_to_cut(cuts: tuple[int, ...], blocks: list[str]) -> None:
    assert ["".join("abcdef"[i] for i in block) for block in block_ranges(cuts, 6)] == blocks


# timm's keywords ----------------------------------------------------------------------------------


def test_timm_s_keywords_reach_the_backbone() -> None:
    model = timm.create_model(
        "resnet20_man_dgl_k4", num_classes=7, in_chans=1, drop_rate=0.3, drop_path_rate=0.2
    )
    assert model.backbone.drop_rate == 0.3
    assert model.backbone.layer3[2].drop_path.drop_prob == pytest.approx(0.2)
    assert model.backbone.conv1.in_channels == 1
    assert model.local_step(torch.randn(4, 1, 32, 32), torch.arange(4)).logits.shape == (4, 7)


@pytest.mark.parametrize("img_size", [64, (64, 32)])
def test_a_vit_takes_an_image_size(img_size) -> None:
    model = timm.create_model(VIT, img_size=img_size, depth=2, embed_dim=24, num_heads=2)
    images = torch.randn(2, 3, 64, 64 if img_size == 64 else 32)
    assert torch.isfinite(model.local_step(images, torch.arange(2)).losses).all()


def test_the_model_says_what_size_its_images_have() -> None:
    # timm builds vitamin_xlarge_336 with the data settings of vitamin_xlarge_256.
    with torch.device("meta"):
        model = man_zoo.localize("vitamin_xlarge_336", "dgl", 2)
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 336, 336)
        assert model(torch.empty(1, 3, 336, 336)).shape == (1, model.num_classes)


def test_features_only_is_the_backbones() -> None:
    model = timm.create_model("resnet20_man_dgl_k4", features_only=True, out_indices=(1, 3))
    assert [tuple(f.shape) for f in model(torch.randn(1, 3, 32, 32))] == [
        (1, 16, 32, 32),
        (1, 64, 8, 8),
    ]


def test_a_checkpoint_loads(tmp_path) -> None:
    saved = timm.create_model("resnet20_man_dgl_k4")
    path = tmp_path / "model.pth"
    torch.save(saved.state_dict(), path)
    loaded = timm.create_model("resnet20_man_dgl_k4", checkpoint_path=str(path))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name])


@pytest.mark.parametrize("name", ["resnet20_man_dgl_k10", "resnet50_man_dgl_k2"])
def test_weights_that_are_not_published_raise_timm_s_error(name: str) -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_zoo_models_have_the_backbones_data_settings() -> None:
    cfg = timm.create_model("resnet20_man_dgl_k4").pretrained_cfg
    assert cfg["input_size"] == (3, 32, 32)
    assert timm.data.resolve_data_config(cfg)["mean"] == pytest.approx(
        (0.4914, 0.4824, 0.4467), abs=1e-3
    )


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "keywords", "sentences"),
    [
        ("resnet20", {"method": "man_dlg"}, ["Unknown method 'man_dlg'", "nearest is 'man_dgl'."]),
        (
            "resnet20",
            {"k": 11},
            ["k=11 is impossible for resnet20", "has 10 units", "nearest is 10."],
        ),
        ("resnet20", {"k": 0}, ["k=0 is impossible for resnet20", "the nearest is 1."]),
        ("resnet20", {}, ["'man_dgl' needs k="]),
        ("resnet20", {"method": "e2e", "k": 2}, ["takes k=1, not k=2."]),
        (
            "resnet20",
            {"k": 2, "cuts": "layer1.7"},
            ["Unknown cut 'layer1.7'", "nearest is 'layer1."],
        ),
        ("resnet20", {"k": 2, "cuts": "layer3.2"}, ["Unknown cut 'layer3.2'", "nearest is 'layer"]),
        ("resnet20", {"k": 2, "cuts": "evne"}, ["Unknown cut 'evne'"]),
        ("resnet20", {"k": 3, "cuts": "layer1.1"}, ["takes 2 different cuts, but 1 were given"]),
        ("resnet20", {"k": 3, "cuts": "published"}, ["No published cuts for resnet20 with k=3"]),
        ("resnet110", {"k": 5, "cuts": "published"}, ["there are for k in [2, 3, 4, 8, 16, 32]."]),
        ("resnet20", {"k": 2, "head": "wid"}, ["Unknown head 'wid'", "nearest is 'wide'."]),
        (
            "resnet20",
            {"k": 2, "form": "relase"},
            ["Unknown form 'relase'", "nearest is 'release'."],
        ),
        ("resnet20", {"k": 2, "head_norm": "grop"}, ["Unknown head_norm 'grop'", "is 'group'."]),
        (
            "resnet20",
            {"k": 2, "lambda1": (1, 1)},
            ["Unknown keyword for man_dgl 'lambda1'", "expected bias, cuts", "The nearest is"],
        ),
        (
            "resnet20",
            {"k": 2, "method": "dgl", "momentum": 0.9},
            ["Unknown keyword for dgl 'momentum'", "The nearest is"],
        ),
        ("resnet21", {"k": 2}, ["Unknown backbone 'resnet21'", "The nearest is 'resnet"]),
        ("xcit_nano_12_p16_224", {"k": 2}, ["Xcit cannot be split", "ResNet, ResNetV2"]),
    ],
)
def test_errors_are_one_sentence_with_the_nearest_name(
    backbone: str, keywords: dict, sentences: list[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentences[0])) as error:
        man_zoo.localize(backbone, **keywords)
    assert all(sentence in str(error.value) for sentence in sentences)
    assert "\n" not in str(error.value)


def test_a_misspelt_keyword_is_an_error_that_names_it() -> None:
    with pytest.raises((TypeError, ValueError), match="momentun"):
        timm.create_model("resnet20_man_dgl_k4", momentun=0.9)


@pytest.mark.parametrize(
    ("backbone", "methods", "sentence"),
    [
        ("resnet33", "dgl", "Unknown backbone 'resnet33'"),
        ("resnet20", "dlg", "Unknown method 'dlg'"),
    ],
)
def test_register_refuses_unknown_names(backbone: str, methods: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        man_zoo.register(backbone, 2, methods)


def test_a_name_outside_the_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="'resnet20_k4' is not a zoo name"):
        parse_name("resnet20_k4")
