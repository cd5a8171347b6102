"""Plans that keep seconds small: what is timed, what is kept, what is chosen."""

import json

import pytest
import timm
import torch

import man_zoo
from man_zoo.benchmark import trial
from man_zoo.commands import plan as plan_command
from man_zoo.planner import Planner, Setting, place, seconds
from man_zoo.planner.blocks import cost_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MAN_ZOO_CACHE", str(tmp_path))
    for module in (seconds, trial):
        monkeypatch.setattr(module, "RUN", 0.0)
    return tmp_path


def planner(method: str = "man_dgl", calibrate: bool = True, **step) -> Planner:
    model = timm.create_model("resnet18", num_classes=10)
    setting = Setting(**{"batch_size": 2, "device": "cpu", "channels_last": True} | step)
    return Planner(model, "resnet18", method, {}, (3, 32, 32), setting, calibrate=calibrate)


def test_a_piece_is_timed_once_and_kept_in_a_file(folder, monkeypatch):
    first = planner().cuts(3, "even", "units").cost.seconds
    assert first > 0
    (file,) = folder.glob("*.json")
    assert all(value > 0 for value in json.loads(file.read_text()).values())
    monkeypatch.setattr(seconds, "median_seconds", None)  # nothing is timed again
    assert planner().cuts(3, "even", "units").cost.seconds == first


def test_a_file_that_was_cut_short_is_timed_again(folder):
    planner().cuts(2)
    (file,) = folder.glob("*.json")
    file.write_text(file.read_text()[:20])
    assert planner().cuts(2).cost.seconds > 0
    json.loads(file.read_text())


def test_another_setting_is_timed_by_itself(folder):
    planner("dgl").cuts(2)
    (file,) = folder.glob("*.json")
    before = len(json.loads(file.read_text()))
    again = planner("dgl")
    again.clock.setting = again.setting = Setting(2, "momentum", device="cpu", channels_last=True)
    again.cuts(2)
    assert len(json.loads(file.read_text())) == 2 * before


def test_seconds_decide_and_not_arithmetic(monkeypatch):
    # Recomputing is free on this device and auxiliaries are slow: two blocks, much recomputed.
    def timed(self, key, make, forward, like, differentiable, needs):
        return 1.0 if forward.__qualname__.startswith("CostModel._output") else 1e-3

    monkeypatch.setattr(seconds.Clock, "seconds", timed)
    plans = planner("dgl")
    budget = planner("dgl", calibrate=False).smallest().cost.peak * 2
    plan = plans.within(budget)
    assert plan.spec.k == 2
    assert plan.cost.peak <= budget
    assert plan.cost.work == pytest.approx(1.0 + 1e-3 * (len(plans.names) + 1))


def test_planning_draws_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(1)
    plans = planner()
    torch.manual_seed(0)
    plans.cuts(2)
    assert torch.equal(torch.rand(1), expected)


def test_processes_are_balanced_by_seconds(monkeypatch):
    # The first unit takes as long as all the others together.
    def timed(self, key, make, forward, like, differentiable, needs):
        return 10.0 if like.shape[1] == 3 else 0.5

    monkeypatch.setattr(seconds.Clock, "seconds", timed)
    model = man_zoo.localize("resnet18", "dgl", 8, num_classes=10, img_size=32)
    setting = Setting(2, device="cpu")
    by_arithmetic = place(model, setting, 2)
    by_seconds = place(model, setting, 2, calibrate=True)
    assert by_arithmetic.ranges[0] != by_seconds.ranges[0] == range(1)
    assert by_seconds.slot == pytest.approx(max(by_seconds.seconds))


def test_localize_takes_calibrate():
    model = man_zoo.localize(
        "resnet18", "dgl", 2, cuts="balanced", batch_size=2, calibrate=True, num_classes=10,
        img_size=32,
    )  # fmt: skip
    assert len(model.blocks) == 2


def test_what_does_not_fit_is_one_sentence(monkeypatch):
    monkeypatch.setattr(seconds, "free_bytes", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"GiB at batch 2 and 0\.00 GiB are free on cpu"):
        planner().cuts(2)


def test_the_command_prints_predicted_against_measured(capsys):
    flags = ["resnet18_man_dgl_k2", "--img-size", "32", "--batch-size", "2", "--calibrate"]
    assert plan_command.main([*flags, "--cuts", "even"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "s a step predicted on" in last
    assert "s measured (" in last


def test_a_trial_runs_slices_and_batches_as_the_step_would(monkeypatch):
    monkeypatch.setattr(seconds, "median_seconds", lambda step, run: 1.0)
    monkeypatch.setattr(trial, "median_seconds", lambda step, run: step() or 1.0)
    plans, seen = planner("dgl", batch_size=4, grad_accum_steps=2, micro_batches=2), []
    plan = plans.cuts(2, "even")
    plans.backbone.conv1.register_forward_hook(lambda conv, images, y: seen.append(len(images[0])))
    assert "0.5 s measured" in trial.trial(plans, plan)
    assert seen[1:] == [2, 2] * 2  # the first one tells shapes


def test_pieces_of_slices_are_timed():
    assert planner("infopro", batch_size=4, micro_batches=2).cuts(2, "even").cost.seconds > 0


# Told at once -------------------------------------------------------------------------------------


def test_a_k_that_the_method_does_not_allow_is_refused_before_anything_is_measured():
    pieces = []
    model = timm.create_model("resnet18", num_classes=10)
    plans = Planner(
        model, "resnet18", "man_dgl", {"momentum_units": 4}, (3, 32, 32), Setting(2, device="cpu"),
        progress=lambda: pieces.append(1),
    )  # fmt: skip
    for ask in (
        lambda: plans.balanced(5),
        lambda: plans.within(2**40, 5),
        lambda: plans.smallest(5),
    ):
        with pytest.raises(ValueError, match="k is from 1 to 3"):
            ask()
    assert not pieces
    assert plans.balanced(3).spec.k == 3


def test_a_budget_below_the_weights_is_refused_before_anything_is_measured():
    pieces = []
    model = timm.create_model("resnet18", num_classes=10)
    plans = Planner(
        model, "resnet18", "man_dgl", {}, (3, 32, 32), Setting(2, device="cpu"),
        progress=lambda: pieces.append(1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="which weights and batch alone take"):
        plans.within(2**20)
    assert not pieces


def test_a_unit_that_is_too_much_alone_is_named():
    plans = Planner(
        timm.create_model("resnet18", num_classes=10), "resnet18", "dgl", {}, (3, 224, 224),
        Setting(64, device="cpu"),
    )  # fmt: skip
    least = plans.smallest()
    assert cost_of(plans._model(None), least.split).peak == least.cost.peak
    with pytest.raises(ValueError, match="which unit stem alone takes; a batch of less than"):
        plans.within(int(0.5 * least.cost.peak))
