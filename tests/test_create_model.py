"""The flags of a run reach its model and its optimizers."""

import pytest
import torch
from torch import nn

from man_zoo import LocalModel
from man_zoo.data import LoaderInfo
from man_zoo.runs.config import parse_args
from man_zoo.runs.model import create_model
from man_zoo.training.optim import create_optimizers

DATA = LoaderInfo(
    name="noise",
    num_classes=3,
    class_names=("a", "b", "c"),
    input_size=(3, 8, 8),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="squash",
    in_memory=True,
    train_count=3,
    val_count=3,
)


def create(*words: str) -> LocalModel:
    return create_model(parse_args(["--model", "resnet20_man_dgl_k3", *words]), DATA)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_form(form):
    assert isinstance(create("--form", form).auxiliaries[0].momentum.bias, nn.Parameter) == (
        form == "paper"
    )


def test_momentum():
    assert create("--man-momentum", "0.5").links[0].target.momentum == 0.5


def test_cuts():
    model = create("--cuts", "layer1.0", "layer3.1")
    assert [model.block_name(j) for j in range(3)] == [
        "stem to layer1.0",
        "layer1.1 to layer3.1",
        "layer3.2",
    ]


def test_recomputation():
    model = create("--recompute", "stem", "auxiliaries.1")
    assert [set(block.recompute) for block in model.blocks] == [{0}, set(), set()]
    assert [auxiliary.momentum.recompute for auxiliary in model.auxiliaries] == [None, "all"]


def test_both_heads_of_a_distilled_network_learn_in_a_probe():
    name = "deit_tiny_distilled_patch16_224"
    model = create("--model", name, "--model-kwargs", "patch_size=4", "--tune", "head")
    learning = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    heads = ("head", "head_dist")
    assert learning == {f"{head}.{name}" for head in heads for name in ("weight", "bias")}


def test_method_and_k_win_over_the_name():
    model = create("--method", "dgl", "--k", "5")
    assert (model.spec.method, len(model.blocks), model.links) == ("dgl", 5, [])


def test_the_data_give_classes_size_mean_and_std():
    model = create()
    assert (model.num_classes, model.input_size) == (3, (3, 8, 8))
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(DATA.mean))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(DATA.std))


def test_smoothing_reaches_every_loss():
    """On logits that are sure and right only smoothed targets cost anything."""
    model = create("--smoothing", "0.3")
    logits, target = torch.eye(3) * 50, torch.arange(3)
    criteria = [block.criterion for block in model.blocks]
    criteria += [auxiliary.head.criterion for auxiliary in model.auxiliaries]
    expected = torch.tensor(50 * 0.2)  # 0.3 / 3 of the smoothed target on each wrong class
    for criterion in criteria:
        torch.testing.assert_close(criterion(logits, target), expected)


def test_keywords_of_the_optimizer():
    args = parse_args(["--opt", "adamw", "--opt-kwargs", "eps=1e-3", "--momentum", "0.5"])
    model = create()
    optimizers = create_optimizers(args, model, model.blocks)
    assert len(optimizers) == 3
    assert {group["eps"] for optimizer in optimizers for group in optimizer.param_groups} == {1e-3}


def test_weight_decay_is_on_all_unless_biases_and_norms_are_spared():
    def decays(*words: str) -> dict[bool, set[float]]:
        """The decays of parameters of one dimension and less (True), and of more."""
        found: dict[bool, set[float]] = {True: set(), False: set()}
        args, model = parse_args(["--weight-decay", "0.25", *words]), create()
        for optimizer in create_optimizers(args, model, model.blocks):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    found[parameter.ndim <= 1].add(group["weight_decay"])
        return found

    assert decays() == {True: {0.25}, False: {0.25}}
    assert decays("--filter-bias-and-bn") == {True: {0.0}, False: {0.25}}
