"""Pieces of a network: what is measured once for several, and that it is the same."""

from collections.abc import Callable

import pytest
import timm
import torch

from man_zoo.planner import Setting
from man_zoo.planner.cost import CostModel
from man_zoo.recompute import WHERE_NOTHING_WIDENS
from man_zoo.spec import LocalSpec

MODES = WHERE_NOTHING_WIDENS.items()


def costs(name: str, measured: Callable[[], object] = lambda: None) -> CostModel:
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=10)
    return CostModel(
        backbone, LocalSpec(name, "dgl", 2), (3, 96, 96), Setting(16), progress=measured
    )


@pytest.mark.parametrize(("mode", "same"), MODES)
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_modes_that_are_the_same_for_a_unit_are_measured_once(name, mode, same) -> None:
    measured: list[str] = []
    model = costs(name, lambda: measured.append(name))
    shared = []
    for i in range(len(model.units)):
        one = model.unit(i, first=False, recompute=same)
        widens, before = model.unit(i, first=False, recompute=None).widens, len(measured)
        other = model.unit(i, first=False, recompute=mode)
        if not widens:
            assert (other, len(measured)) == (one, before)
        shared.append(not widens)
    assert any(shared)


@pytest.mark.parametrize(("mode", "same"), MODES)
def test_modes_that_are_the_same_cost_the_same(mode, same) -> None:
    one, other = costs("resnet18"), costs("resnet18")
    for i, unit in enumerate(one.units.modules):
        if not one.unit(i, first=False, recompute=None).widens:
            pieces = [m._unit(i, False, r, False) for m, r in ((one, same), (other, mode))]
            assert pieces[0] == pieces[1], type(unit)


def test_what_widens_is_another_mode() -> None:
    model = costs("resnet50")
    bottleneck = 2  # in layer1, where maps are larger than weights
    assert model.unit(bottleneck, first=False, recompute=None).widens
    pieces = [model.unit(bottleneck, first=False, recompute=r) for r in ("selective", "expansions")]
    assert pieces[0].saved > pieces[1].saved
