"""The configs of the published tables: each is understood, and says what was published."""

from pathlib import Path

import pytest
import timm
from recipe import ROOT

from man_zoo.console import UserError
from man_zoo.results.published import CIFAR10_ERROR, IMAGENET_ERROR
from man_zoo.results.sweep import read_sweep
from man_zoo.runs.config import parse_args
from man_zoo.runs.recipes import find_config, find_sweep
from man_zoo.spec import make_spec, parse_name
from man_zoo.tasks import settings_of

CONFIGS = ROOT / "recipes" / "configs"
CONFIG_NAMES = list(CONFIGS.rglob("*.yaml"))
SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))
SWEEP_NAMES = [path.stem for path in SWEEPS]
CITYSCAPES = sorted((CONFIGS / "cityscapes").glob("*.yaml"))
TASKS = {
    "cityscapes": "segmentation",
    "earth": "segmentation",
    "coco": "detection",
    "pasted_digits": "detection",
}
DENSE = [path for folder in TASKS for path in sorted((CONFIGS / folder).glob("*.yaml"))]
CELLS = sorted({*CONFIGS.glob("*/**/*.yaml")} - {*DENSE})


@pytest.mark.parametrize("path", CELLS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_cell_is_a_model_of_the_zoo_on_its_data_set(path: Path) -> None:
    args = parse_args(["-c", str(path)])
    backbone, _, _ = parse_name(args.model)
    assert timm.is_model(backbone)
    assert timm.is_model(args.model)
    folder = path.relative_to(CONFIGS).parts[0]
    base = parse_args(["-c", str(CONFIGS / f"{folder}.yaml")])
    own = {"config", "model", "cuts", "form", "man_momentum", "model_kwargs"}
    assert {k: v for k, v in vars(args).items() if k not in own} == {
        k: v for k, v in vars(base).items() if k not in own
    }
    if path.parent.name != "ablation":
        assert args.model == path.stem
        assert args.form == ("release" if "_man_" in path.stem else None)


@pytest.mark.parametrize("path", DENSE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_dense_cell_is_a_backbone_and_a_method(path: Path) -> None:
    args = parse_args(["-c", str(path)])
    folder = path.parent.name
    assert (args.task, args.dataset) == (TASKS[folder], folder)
    others = {"output_stride", "channels", *settings_of(args.task)}  # timm's and the task's
    keywords = {k: v for k, v in args.model_kwargs.items() if k not in others}
    spec = make_spec(args.model, args.method, args.k or 1, keywords, task=args.task)
    assert path.stem.startswith(spec.name)


@pytest.mark.parametrize("path", CITYSCAPES, ids=lambda path: path.stem)
def test_cityscapes_is_trained_for_40_000_updates(path: Path) -> None:
    args = parse_args(["-c", str(path)])
    assert args.sched == "poly"
    assert args.epochs * (2975 // args.batch_size) == pytest.approx(40_000, rel=0.005)


@pytest.mark.parametrize(
    ("name", "batch_size", "lr", "epochs"),
    [("cifar10", 1024, 0.8, 400), ("svhn", 1024, 0.8, 400), ("stl10", 128, 0.1, 400),
     ("imagenet", 128, 0.4, 90)],
)  # fmt: skip
def test_bases_are_as_published(name, batch_size, lr, epochs) -> None:
    args = parse_args(["-c", str(CONFIGS / f"{name}.yaml")])
    assert (args.batch_size, args.lr, args.epochs) == (batch_size, lr, epochs)
    assert (args.opt, args.momentum, args.weight_decay) == ("sgd", 0.9, 1e-4)
    assert args.opt_kwargs == {"nesterov": True}
    assert (args.sched, args.min_lr) == ("cosine", 0)


def test_every_published_cell_has_a_config() -> None:
    names = {path.stem for path in CELLS}
    assert {*CIFAR10_ERROR, *IMAGENET_ERROR} <= names


def test_configs_and_sweeps_have_names(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("cifar10") == CONFIGS / "cifar10.yaml"
    assert find_config("cifar10/ablation/dgl_wide") == CONFIGS / "cifar10/ablation/dgl_wide.yaml"
    assert find_sweep("cifar10_short") == ROOT / "recipes" / "sweeps" / "cifar10_short.yaml"
    Path("cifar10").write_text("lr: 1")
    assert find_config("cifar10") == Path("cifar10")  # a file of one's own comes first


@pytest.mark.parametrize(
    ("find", "name", "sentence"),
    [
        (
            find_config,
            "cifar10/resnet32_dlg_k16",
            f"Unknown config 'cifar10/resnet32_dlg_k16'; expected one of {len(CONFIG_NAMES)}. The "
            "nearest is 'cifar10/resnet32_dgl_k16'.",
        ),
        (
            find_sweep,
            "cifar10_long",
            f"Unknown sweep 'cifar10_long'; expected {', '.join(SWEEP_NAMES)}. The nearest is "
            "'cifar10_short'.",
        ),
        (find_config, "mine.yaml", "mine.yaml: no such file."),
    ],
)
def test_a_name_that_there_is_not_is_a_sentence(find, name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        find(name)
    assert str(error.value) == sentence


@pytest.mark.parametrize("path", SWEEPS, ids=str)
def test_a_sweep_is_understood(path: Path, tmp_path) -> None:
    results, runs = read_sweep(path, tmp_path, [])
    assert results.parent == ROOT / "docs" / "results"
    assert (
        len({(run.name, run.seed) for run in runs})
        == len(runs)
        > (2 if path.stem == "pasted_digits" else 5)
    )


def test_the_sweep_of_the_published_table_has_every_cell_of_it(tmp_path) -> None:
    _, runs = read_sweep(ROOT / "recipes" / "sweeps" / "cifar10_published.yaml", tmp_path, [])
    assert {run.name for run in runs} == set(CIFAR10_ERROR)
