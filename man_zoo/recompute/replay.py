"""Saved tensors that are made again one at a time, by the operators that made them.

Within a :class:`Replay` autograd is given no tensor to keep that can be made again: it keeps how to
make it, an operator and its arguments, and the operator runs again when the first gradient asks
for the tensor. Which results are kept after all is a policy, as it is in torch's selective
checkpointing (``create_selective_checkpoint_contexts``). That runs a whole region again before the
region's first gradient; here no more is alive at once than the next gradient needs.

Operators run again and modules do not: no hook of a module is called twice, no batch is counted
twice, and no random number is drawn twice, because what was drawn is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from ..operands import tensors_among

T = TypeVar("T")

# Whether to keep what an operator made: ``(operator, arguments, result) -> bool``.
Policy = Callable[[Any, tuple[Any, ...], Tensor], bool]


class Replay(TorchDispatchMode):
    """Context in which a policy decides what autograd keeps.

    Args:
        keeps: The policy, asked about every result of every operator.
        sparing: Whether products made on the way to a larger one are made again afterwards, and
            not held beside it.
    """

    def __init__(self, keeps: Policy, *, sparing: bool = False) -> None:
        super().__init__()
        self.keeps = keeps
        self.sparing = sparing
        # By storage, for as long as it lives: what can be made again, by where it lies in it.
        self._made: Any = WeakIdKeyDictionary()
        # By storage: what is made of a tensor that is kept.
        self._users: Any = WeakIdKeyDictionary()
        self._hooks = saved_tensors_hooks(self._value, _tensor)

    def __enter__(self) -> Replay:
        super().__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        super().__exit__(*error)

    def close(self, outputs: Any) -> None:
        """Keep what the region hands on: whoever takes it does so anyway."""
        for output in tree_leaves(outputs):
            value = self._value(output) if isinstance(output, Tensor) else output
            if isinstance(value, Made):
                value.keep(output.detach())
        self._made.clear()
        self._users.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.detach.default:  # autograd, about to keep a tensor
            return func(*args, **kwargs)
        values = tuple(_changed(arg, Tensor, self._value) for arg in args)
        named = {name: _changed(arg, Tensor, self._value) for name, arg in kwargs.items()}
        written = [args[i] for i in _written(func)]
        for tensor in written:
            self._overwrite(tensor)
        out = func(*args, **kwargs)
        if not written or _is_own(values[0], written[0]):
            for index, result in enumerate(out if isinstance(out, tuple | list) else (out,)):
                if isinstance(result, Tensor) and not self.keeps(func, args, result):
                    brief = self.sparing and widens(func, args, result)
                    self._record(result, Made(func, values, named, index, brief=brief))
        return out

    def _value(self, tensor: Tensor) -> Tensor | Made:
        """How to make a tensor; the tensor itself where it is kept."""
        return self._made.get(tensor.untyped_storage(), {}).get(_place(tensor), tensor)

    def _record(self, result: Tensor, value: Made) -> None:
        self._made.setdefault(result.untyped_storage(), {})[_place(result)] = value
        for tensor in value.kept_arguments():
            self._users.setdefault(tensor.untyped_storage(), weakref.WeakSet()).add(value)

    def _overwrite(self, tensor: Tensor) -> None:
        """What is made of the tensor as it was is made while it is."""
        storage = tensor.untyped_storage()
        self._made.pop(storage, None)
        for value in list(self._users.pop(storage, ())):
            value.tensor()


class Made:
    """A result of an operator, to be made again.

    Args:
        func: The operator.
        args: Its arguments; tensors among them are kept, or to be made themselves.
        kwargs: The same.
        index: Which of its results.
        brief: Whether products made on the way to it are not held for others.
    """

    def __init__(
        self, func: Any, args: tuple, kwargs: dict[str, Any], index: int, *, brief: bool
    ) -> None:
        self.func, self.index, self.brief = func, index, brief
        # A norm that runs again moves copies of its running statistics.
        self.args = tuple(
            arg.clone() if i in _statistics(func) and isinstance(arg, Tensor) else arg
            for i, arg in enumerate(args)
        )
        self.kwargs = kwargs
        self.kept: Tensor | None = None
        self._version = self._versions()

    def kept_arguments(self) -> list[Tensor]:
        """Tensors that it is made of."""
        return list(tensors_among((*self.args, *self.kwargs.values())))

    def keep(self, tensor: Tensor) -> Tensor:
        """Hold the tensor, and what it was made of no longer."""
        self.kept, self.args, self.kwargs = tensor, (), {}
        return tensor

    def tensor(self) -> Tensor:
        """The tensor, held from now on: until the gradients that need it are there."""
        if self.kept is None:
            return self.keep(self._make({} if self.brief else None))
        return self.kept

    def _passing(self, products: dict[Made, Tensor] | None) -> Tensor:
        """The tensor for another that is made of it, held only where it is dear.

        Args:
            products: Where it is held for as long as the other is being made; for good if left out.
        """
        if self.kept is not None:
            return self.kept
        if not is_product(self.func):
            return self._make(products)
        if products is None:
            return self.tensor()
        if self not in products:
            products[self] = self._make(products)
        return products[self]

    def _own(self, products: dict[Made, Tensor] | None) -> Tensor:
        """The tensor for an operator that overwrites it."""
        return self._make(products) if self.kept is None else self.kept.clone()

    def _make(self, products: dict[Made, Tensor] | None) -> Tensor:
        if self._versions() != self._version:
            raise RuntimeError(
                f"{self.func} cannot run again: one of its arguments was overwritten in place "
                "since; recompute this unit in another mode."
            )
        args: tuple[Any, ...] = self.args
        if _written(self.func):
            args = (args[0]._own(products), *args[1:])

        def passing(value: Made) -> Tensor:
            return value._passing(products)

        args = tuple(_changed(arg, Made, passing) for arg in args)
        kwargs = {name: _changed(arg, Made, passing) for name, arg in self.kwargs.items()}
        with torch.no_grad():
            out = self.func(*args, **kwargs)
        return out[self.index] if isinstance(out, tuple | list) else out

    def _versions(self) -> int:
        return sum(tensor._version for tensor in self.kept_arguments())


def _tensor(value: Tensor | Made) -> Tensor:
    return value.tensor() if isinstance(value, Made) else value


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _is_own(value: Tensor | Made, tensor: Tensor) -> bool:
    """Whether a tensor can be made again without another that shares its storage."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return isinstance(value, Made) and whole and not _is_view(value.func)


def _changed(value: Any, kind: type[T], change: Callable[[T], Any]) -> Any:
    """An argument, or all of its kind in a list."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return [_changed(inner, kind, change) for inner in value]
    return value


# Operators ----------------------------------------------------------------------------------------


@cache
def is_product(func: Any) -> bool:
    """Whether an operator counts as arithmetic: matrix products, convolutions, attention."""
    return func.overloadpacket in flop_registry or "attention" in func.name()


def widens(func: Any, args: tuple[Any, ...], result: Tensor) -> bool:
    """Whether it is a product larger than all that it is made of."""
    if not is_product(func):
        return False
    return result.numel() > max(arg.numel() for arg in args if isinstance(arg, Tensor))


def is_random(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operator draws random numbers; attention without dropout draws none."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return len(args) > i and args[i] > 0
    return True


@cache
def _written(func: Any) -> tuple[int, ...]:
    """Indices of the arguments that an operator overwrites, running statistics left out."""
    return tuple(
        i
        for i, arg in enumerate(func._schema.arguments)
        if arg.alias_info and arg.alias_info.is_write and i not in _statistics(func)
    )


@cache
def _statistics(func: Any) -> tuple[int, ...]:
    names = [arg.name for arg in func._schema.arguments]
    return tuple(i for i, name in enumerate(names) if name in ("running_mean", "running_var"))


@cache
def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
