"""What a mode of recomputation is: what a module keeps of its forward pass for its backward pass.

==============  ==================================================================================
mode            what is kept beside input and output, and what that costs
==============  ==================================================================================
``selective``   Outputs of convolutions, linear layers and attention. Norms, activations and sums
                run again (Korthikanti et al. 2022, arXiv 2205.05198): no arithmetic.
``expansions``  Those that are no larger than what they were made of. What widens runs again: the
                last convolution of a bottleneck, queries, keys and values, an MLP's first layer.
``stepwise``    Nothing. A tensor is made when the first gradient asks for it, and what is cheap is
                made again for the next one that does: the arithmetic of ``all`` or less.
``sparing``     As ``stepwise``, and what is made on the way to an expansion is made again after it:
                the least memory.
``attention``   As ``stepwise`` within the attention of a transformer block, its norm included; the
                rest of the block keeps everything.
``mlp``         The same within the MLP.
``all``         Nothing, and the whole module runs again at once before its first gradient: plain
                checkpointing (Chen et al. 2016, arXiv 1604.06174).
==============  ==================================================================================

What a random operator drew is kept in every mode but ``all``, and so is what is small.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .replay import Replay, is_product, is_random, widens

# What is this much smaller than a module's input is kept: statistics of norms, pooled features.
SMALL = 16
# timm's names of a transformer block's two branches.
PARTS = {"attention": ("norm1", "attn"), "mlp": ("norm2", "mlp")}
ATTENTION = "attn"


def _keeps_products(func: Any, args: tuple[Any, ...], result: Tensor) -> bool:
    return is_product(func)


def _keeps_narrow_products(func: Any, args: tuple[Any, ...], result: Tensor) -> bool:
    return is_product(func) and not widens(func, args, result)


def _keeps_nothing(func: Any, args: tuple[Any, ...], result: Tensor) -> bool:
    return False


_POLICIES = {
    "selective": _keeps_products,
    "expansions": _keeps_narrow_products,
    "stepwise": _keeps_nothing,
    "sparing": _keeps_nothing,
}
WHOLE = "all"
# From the least that runs again to the most.
MODES = ("selective", "attention", "mlp", "expansions", "stepwise", "sparing", WHOLE)

# What a mode is where no product is larger than all that it is made of.
WHERE_NOTHING_WIDENS = {"expansions": "selective", "sparing": "stepwise"}


def modes_of(module: nn.Module) -> tuple[str, ...]:
    """The modes that a module has."""
    names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    return tuple(mode for mode in MODES if mode not in PARTS or ATTENTION in names)


def run(module: nn.Module, *inputs: Any, recompute: str | None = None) -> Any:
    """``module(*inputs)``, recomputed in backward in the mode given, if any.

    The first of the inputs are the features, by which a tensor counts as small.
    """
    if recompute is None or not torch.is_grad_enabled():
        return module(*inputs)
    return _recomputed(module, recompute, *inputs)


@torch.compiler.disable(reason="torch.compile takes no checkpoint whose buffers change")
def _recomputed(module: nn.Module, mode: str, *inputs: Any) -> Any:
    if mode == WHOLE:
        return _checkpointed(module, *inputs)
    large = _bytes(inputs[0]) // SMALL
    keeps = _POLICIES["stepwise" if mode in PARTS else mode]
    running = [] if mode in PARTS else [module]

    def policy(func: Any, args: tuple[Any, ...], result: Tensor) -> bool:
        small = _bytes(result) <= large
        return not running or small or is_random(func, args) or keeps(func, args, result)

    replay = Replay(policy, sparing=mode == "sparing")
    with replay, _marking(module, PARTS.get(mode, ()), running):
        outputs = module(*inputs)
    replay.close(outputs)
    return outputs


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


@contextmanager
def _marking(module: nn.Module, names: tuple[str, ...], running: list[nn.Module]) -> Iterator[None]:
    """Let ``running`` list the submodules of these names that run."""
    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if name.rpartition(".")[2] in names:
                hooks.enter_context(part.register_forward_pre_hook(_append(running)))
                hooks.enter_context(part.register_forward_hook(_remove(running)))
        yield


def _append(running: list[nn.Module]) -> Callable[..., None]:
    return lambda part, *_: running.append(part)


def _remove(running: list[nn.Module]) -> Callable[..., None]:
    return lambda part, *_: running.remove(part)


# Plain checkpointing ------------------------------------------------------------------------------


def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), buffers_untouched(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def buffers_untouched(module: nn.Module) -> Iterator[None]:
    """Lend the module copies of its buffers, so that BatchNorm counts no batch a second time."""
    buffers = [
        (layer, name, buffer)
        for layer in module.modules()
        for name, buffer in layer._buffers.items()
        if buffer is not None
    ]
    for layer, name, buffer in buffers:
        layer._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for layer, name, buffer in buffers:
            layer._buffers[name] = buffer
