"""The analyses: their estimators, the depths they compare, the recipe and what it writes."""

import json
import shutil
from argparse import Namespace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from recipe import flags, python, train_here, write_images
from timm.layers import Format

import man_zoo
from man_zoo.analysis.cka import MinibatchCKA, gram, hsic
from man_zoo.analysis.images import draw_images
from man_zoo.analysis.maps import activation_map
from man_zoo.analysis.pictures import _thin
from man_zoo.analysis.runs import common_depths, load_runs, read
from man_zoo.analysis.separability import pool, probe_top1
from man_zoo.commands.analyse import analyse, build_parser
from man_zoo.commands.evaluate import evaluate_weights, parse_args
from man_zoo.console import UserError
from man_zoo.data import create_loaders
from man_zoo.layout import Layout
from man_zoo.runs.model import preprocessing_of

# CKA


def cka(*features: torch.Tensor, batch: int = 64) -> torch.Tensor:
    estimate = MinibatchCKA()
    for parts in zip(*(x.split(batch) for x in features), strict=True):
        estimate.update(torch.stack([gram(part) for part in parts]))
    return estimate.compute()


def test_cka_is_one_up_to_rotation_scale_and_shift():
    torch.manual_seed(0)
    x = torch.randn(200, 16).double()
    rotation, _ = torch.linalg.qr(torch.randn(16, 16).double())
    values = cka(x, 3 * x @ rotation + 5, x @ torch.randn(16, 16).double())
    assert values[0, :2].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert values[0, 2] < 0.95  # another linear map is another similarity


def test_hsic_is_the_mean_over_all_quadruples():
    """The U-statistic by which Song et al. 2012 define HSIC_1, term after term."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 3), torch.randn(7, 5)
    k, m = (a.numpy().astype(float) @ a.numpy().T.astype(float) for a in (x, y))
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(7), 4)
    ]
    values = hsic(torch.stack([gram(x), gram(y)]))
    assert values[0, 1].item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_hsic_of_unrelated_features_is_zero_on_average():
    torch.manual_seed(0)
    draws = [
        hsic(torch.stack([gram(torch.randn(8, 20)), gram(torch.randn(8, 20))])) for _ in range(1000)
    ]
    crossed, own = (torch.stack(draws)[:, 0, i] for i in (1, 0))
    error = (crossed.std() / len(draws) ** 0.5).item()
    assert abs(crossed.mean().item()) < 4 * error < 0.1 * own.mean().item()


def test_minibatches_estimate_the_cka_of_all_images():
    torch.manual_seed(0)
    x = torch.randn(1024, 12)
    y = x[:, :6] + 0.5 * torch.randn(1024, 6)
    whole, parts = (cka(x, y, batch=batch)[0, 1].item() for batch in (1024, 32))
    assert 0.3 < whole < 0.9
    assert parts == pytest.approx(whole, abs=0.02)


def test_a_last_batch_of_fewer_than_four_is_left_out():
    x = torch.randn(67, 5)
    assert torch.equal(cka(x, x.exp())[0], cka(x[:64], x[:64].exp())[0])


# Probes and maps


def test_probe_tells_separable_classes_apart_and_noise_not():
    random = np.random.default_rng(0)
    target = np.arange(600) % 3
    noise = random.normal(size=(600, 8))
    apart = noise + 20 * np.eye(3, 8)[target]
    half = slice(None, 300), slice(300, None)
    split = [target[part] for part in half]
    assert probe_top1(apart[half[0]], split[0], apart[half[1]], split[1]) == 100
    chance = probe_top1(noise[half[0]], split[0], noise[half[1]], split[1])
    assert chance == pytest.approx(100 / 3, abs=11)  # four standard errors


def test_features_are_pooled_in_any_layout():
    grid = torch.randn(2, 5, 4, 6)
    quarters = pool(grid, Layout())
    assert quarters.shape == (2, 20)
    assert quarters[0, 1] == pytest.approx(grid[0, 0, :2, 3:].mean().item(), abs=1e-6)
    # Another layout is added up in another order: the last digit hangs on the processor.
    torch.testing.assert_close(pool(grid.permute(0, 2, 3, 1), Layout(Format.NHWC)), quarters)
    tokens = torch.cat([torch.full((2, 1, 5), 7.0), grid.flatten(2).mT], 1)
    layout = Layout(Format.NLC, (4, 6), 1, "token")
    expected = torch.cat([torch.full((2, 5), 7.0), quarters], 1)
    torch.testing.assert_close(pool(tokens, layout), expected)
    assert pool(grid[:, :, :1, :1], Layout()).shape == (2, 5)


def test_activation_map_is_the_mean_magnitude_over_channels():
    grid = torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]])
    assert activation_map(grid, Layout()).tolist() == [[[2.0, 3.0]]]


def test_few_ticks_with_both_ends():
    assert _thin(range(16), 20) == list(range(16))
    thinned = _thin(range(55), 20)
    assert len(set(thinned)) == 20
    assert (thinned[0], thinned[-1]) == (0, 54)
    assert _thin([3], 8) == [3]


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory) -> dict[str, Path]:
    """Runs of one backbone, trained end to end and in blocks, and one of another backbone."""
    words = {
        "e2e": "--model resnet20_e2e_k1 --model-kwargs",
        "k3": "--model resnet20_dgl_k3 --model-kwargs --cuts layer1.0 layer2.2",
        "man": "--seed 3",
        "contrast": "--model resnet20_infopro_k2 --model-kwargs local_loss=contrast",
        "other": "--model resnet32_e2e_k1 --model-kwargs",
    }
    runs = {}
    for name, more in words.items():
        output = tmp_path_factory.mktemp(name)
        train_here(*flags(data, output, *more.split()))
        runs[name] = output / "run"
    return runs


def load(*folders: Path):
    return load_runs(folders, torch.device("cpu"))


def test_runs_are_compared_at_the_cuts_of_the_finest(folders):
    e2e, k3, man = load(folders["e2e"], folders["k3"], folders["man"])
    assert common_depths([e2e, k3]) == (1, 6, 9)
    assert common_depths([e2e, man, k3]) == (*man.model.cuts, 9)
    assert common_depths([e2e]) == tuple(range(10))


@pytest.mark.parametrize("name", ["e2e", "man"])
def test_features_are_those_of_the_network_at_that_depth(name, folders):
    (run,) = load(folders[name])
    depths, seen = (1, 6, 9), []
    for depth in depths:
        unit = run.model.backbone.get_submodule(run.units.names[depth])
        unit.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    images = torch.randn(2, 3, 8, 8)
    run.model(images)
    hooked, seen[:] = list(seen), []
    for expected, got in zip(hooked, read(run, images, depths, torch.clone), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_features_of_tokens_and_channels_last_networks(backbone):
    size = {"img_size": 64, "num_classes": 3}
    model = man_zoo.localize(backbone, "dgl", k=2, **size).eval()
    units = man_zoo.families.list_units(model.backbone)
    images, features = torch.randn(2, 3, 64, 64), None
    with torch.no_grad():
        features = units.modules[1](units.modules[0](images))
    width = features.shape[-1]
    prefix = units.layout.prefix_tokens
    assert pool(features, units.layout).shape == (2, (4 + (1 if prefix else 0)) * width)
    assert activation_map(features, units.layout).shape[0] == 2


# The recipe


@pytest.fixture(scope="module")
def analysis(folders, tmp_path_factory):
    """What the recipe found, and the folder that it wrote."""
    output = tmp_path_factory.mktemp("analysis") / "new"
    runs = [str(folders[name]) for name in ("k3", "e2e", "man", "contrast")]
    words = [*runs, "--output", str(output), "--batch-size", "5", "--workers", "0"]
    return analyse(build_parser().parse_args(words)), output


def test_every_picture_and_the_numbers_are_written(analysis):
    found, output = analysis
    assert json.loads((output / "analysis.json").read_text()) == found
    assert sorted(path.name for path in output.iterdir()) == [
        "analysis.json",
        "auxiliaries.png",
        "cka.png",
        "cka_by_depth.png",
        "feature_maps.npz",
        "feature_maps.png",
        "separability.png",
    ]


def test_maps_are_kept_for_every_run_and_depth(analysis):
    _, output = analysis
    maps = np.load(output / "feature_maps.npz")
    assert len(maps) == 1 + 4 * 4
    assert maps["images"].shape == (3, 3, 8, 8)
    assert 0 <= maps["images"].min() < maps["images"].max() <= 1
    assert maps["resnet20_e2e_k1, seed 0/layer3.2"].shape == (3, 2, 2)


def test_numbers_say_what_they_are_of(analysis):
    found, _ = analysis
    assert found["depths"] == ["layer1.1", "layer2.0", "layer3.0", "layer3.2"]
    assert found["reference"] == "resnet20_e2e_k1, seed 0"
    assert (found["train_images"], found["val_images"]) == (24, 10)
    labels = ["resnet20_dgl_k3, seed 0", "resnet20_e2e_k1, seed 0", "resnet20_man_dgl_k4, seed 3"]
    assert [run["label"] for run in found["runs"]][:3] == labels
    assert all(len(run["probes"]) == 4 for run in found["runs"])
    assert found["runs"][1]["cka_with_reference"] == pytest.approx([1] * 4)
    assert len(found["cka"]) == 10  # four runs in pairs, each with itself too
    for pair in found["cka"]:
        assert np.shape(pair["values"]) == (4, 4)
        if pair["rows"] == pair["columns"]:
            assert np.diagonal(pair["values"]) == pytest.approx([1] * 4)


def test_exits_are_those_of_the_evaluation(analysis, folders):
    found, _ = analysis
    for i, name in enumerate(["k3", "e2e", "man"]):
        expected = evaluate_weights(parse_args([str(folders[name]), "--exits"]))["exits"]
        exits = found["runs"][i]["exits"]
        assert [exit["top1"] for exit in exits] == pytest.approx(expected)
    units = [exit["unit"] for exit in found["runs"][0]["exits"]]
    assert units == ["layer1.0", "layer2.2", "layer3.2"]
    assert [exit["top1"] is None for exit in found["runs"][3]["exits"]] == [True, False]


def test_images_are_drawn_by_the_seed_and_as_evaluation_has_them(folders):
    (run,) = load(folders["e2e"])
    args = Namespace(**vars(run.args) | {"workers": 0})

    def draw(train: int = 12, **options):
        splits = draw_images(args, run.data, train, 9, batch_size=5, **options)
        return [torch.cat([images for images, _ in loader]) for loader in splits]

    first, again, other = draw(), draw(), draw(seed=1)
    assert [len(images) for images in first] == [12, 9]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    config = preprocessing_of(args.model, args.pretrained)
    _, val, _ = create_loaders(args, PartialState(), config)
    whole = torch.cat([images for images, _ in val])
    nearest = torch.cdist(first[1].flatten(1), whole.flatten(1)).min(1)
    assert nearest.values.max() < 1e-2
    assert nearest.indices.tolist() != list(range(9))  # a folder is sorted by class
    assert len(draw(1000)[0]) == 24
    args.val_holdout = 8  # not trained on, and the test images are what they were
    assert len(draw(1000)[0]) == 16
    assert torch.cdist(draw()[1].flatten(1), whole.flatten(1)).min(1).values.max() < 1e-2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("e2e other", "is a resnet20 and resnet32_e2e_k1, seed 0 a resnet32; expected runs of one"),
        ("e2e e2e", "Two runs are called resnet20_e2e_k1, seed 0; expected different --labels."),
        ("e2e k3 --labels one", r"1 --labels for 2 run\(s\); expected 2."),
        ("e2e nowhere", "nowhere: there is no run"),
        ("e2e --checkpoint epoch-0009", "Unknown checkpoint 'epoch-0009'"),
        ("e2e empty", "holds no checkpoint yet"),
        ("e2e --data-dir nowhere", "--data-dir nowhere is not a directory"),
        ("e2e --train-images 1", "1 training images are all of one class; expected more"),
        ("e2e --batch-size 3", "CKA needs batches of 4 images"),
        ("e2e --val-images 0", "expected a whole number from 1, got '0'"),
    ],
)
def test_what_cannot_be_analysed_is_a_sentence(words, sentence, folders, tmp_path):
    empty = tmp_path / "empty"
    shutil.copytree(folders["e2e"], empty)
    shutil.rmtree(empty / "checkpoints")
    places = {**folders, "empty": empty}
    given = [str(places.get(word, word)) for word in words.split()]
    with pytest.raises(UserError, match=sentence) as error:
        analyse(
            build_parser().parse_args([*given, "--output", str(tmp_path / "new"), "--workers", "0"])
        )
    assert "\n" not in str(error.value)


def test_the_recipe_ends_in_a_sentence(tmp_path):
    result = python("recipes/analyse.py", str(tmp_path), check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"analyse.py: {tmp_path}: there is no run")
    assert "Traceback" not in result.stderr
