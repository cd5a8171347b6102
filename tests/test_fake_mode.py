"""The planner's fake tensors are FakeTensorMode's, operator by operator."""

from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from man_zoo.operands import tensors_among
from man_zoo.planner.fake_mode import QuickFakeMode
from man_zoo.planner.piece import without_data
from man_zoo.target import acting_as


class Told(TorchDispatchMode):
    """What every operator gave: layouts, and which of its arguments' storages they lie in."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Any] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [id(t.untyped_storage()) for t in tensors_among((*args, *kwargs.values()))]
        for t in tensors_among([out]):
            storage = t.untyped_storage()
            own = given.index(id(storage)) if id(storage) in given else "new"
            layout = t.shape, t.stride(), t.storage_offset(), t.dtype, t.device
            self.lines.append((str(func), type(out), layout, storage.nbytes(), own))
        return out


def told(mode: FakeTensorMode, name: str, precision: torch.dtype | None) -> list[Any]:
    """Of the second of two training steps."""
    with torch.device("meta"):
        few = {"block_config": (3, 3)} if name == "densenet121" else {}
        backbone = timm.create_model(name, num_classes=10, **few)
    with mode, acting_as("cuda"):
        model = without_data(backbone, "cpu", torch.channels_last).train()
        images = torch.rand(4, *model.pretrained_cfg["input_size"])
        labels = torch.randint(10, (4,))
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        for _ in range(2):
            with Told() as operators:
                with torch.autocast("cpu", precision) if precision else nullcontext():
                    loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return operators.lines


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    [
        *("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"),
        *("test_mambaout", "test_nfnet", "test_maxvit", "densenet121"),
    ],
)
def test_a_step_is_made_of_the_same_tensors(name, precision) -> None:
    usual = told(FakeTensorMode(), name, precision)
    quick = told(QuickFakeMode(), name, precision)
    assert len(usual) > 100
    assert quick == usual


def test_what_is_alike_is_asked_for_once(monkeypatch) -> None:
    asked: list[str] = []
    dispatch = FakeTensorMode.__torch_dispatch__

    def count(self, func, *rest):
        asked.append(str(func))
        return dispatch(self, func, *rest)

    monkeypatch.setattr(FakeTensorMode, "__torch_dispatch__", count)
    with QuickFakeMode():
        xs = [torch.empty(2, 3) for _ in range(4)]
        first = torch.cat(xs, 1)
        second = torch.cat(xs, 1)
        other = torch.cat(xs, 0)
    assert asked.count("aten.cat.default") == 2
    assert first.shape == second.shape == (2, 12) != other.shape
    assert len({id(t.untyped_storage()) for t in (first, second, other)}) == 3


def test_numbers_of_another_type_are_not_alike() -> None:
    with QuickFakeMode():
        x = torch.ones(3, dtype=torch.int64)
        assert [(x + n).dtype for n in (1, 1.0, True)] == [torch.int64, torch.float32, torch.int64]


def test_what_has_a_value_keeps_it_and_what_has_none_says_so() -> None:
    with QuickFakeMode():
        for _ in range(2):
            assert (torch.tensor(2.0) * 3).item() == 6
            with pytest.raises(DataDependentOutputException):
                torch.empty(1).sum().item()


def test_an_argument_that_comes_back_is_no_new_tensor() -> None:
    with QuickFakeMode():
        linear, x = nn.Linear(3, 3), torch.rand(2, 3)
        for _ in range(2):
            assert F.relu_(y := linear(x).detach()) is y
            flat = torch.ops.aten._unsafe_view(x, [6])
            assert flat.untyped_storage() is x.untyped_storage()
            assert x.as_strided((2,), (1,), 1).storage_offset() == 1


def test_a_real_tensor_is_refused() -> None:
    real = torch.rand(3)
    with QuickFakeMode(), pytest.raises(AssertionError, match="Fake"):
        real + torch.rand(3)


def test_the_default_type_counts() -> None:
    with QuickFakeMode():
        single = torch.empty(3), torch.ones(3, dtype=torch.int64) / 2
        torch.set_default_dtype(torch.float64)
        try:
            double = torch.empty(3), torch.ones(3, dtype=torch.int64) / 2
        finally:
            torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in single} == {torch.float32}
    assert {t.dtype for t in double} == {torch.float64}


def test_a_tensor_of_another_mode_is_refused() -> None:
    with FakeTensorMode():
        other = torch.rand(3)
    with QuickFakeMode(), pytest.raises(AssertionError, match="Mixing fake modes"):
        other + torch.rand(3)


def test_sparse_tensors_are_left_to_the_usual_mode() -> None:
    with QuickFakeMode():
        x = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (2, 2))
        assert (x * 2).layout is torch.sparse_coo
