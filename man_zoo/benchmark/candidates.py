"""Who takes part: the models named, and end to end of each backbone beside them."""

from argparse import ArgumentTypeError, Namespace
from ast import literal_eval
from dataclasses import dataclass, replace
from typing import Any

import timm

from ..messages import unknown
from ..spec import END_TO_END, LocalSpec, is_zoo_name, method_keywords, parse_name, take_keywords

# Keywords of localize that are no model's own.
PLANNERS = ("memory_budget", "calibrate")


def keyword(text: str) -> tuple[str, Any]:
    """``"momentum=0.9"`` -> ``("momentum", 0.9)``; what is no Python literal stays text."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


@dataclass(frozen=True)
class Candidate:
    """One line of the table.

    Args:
        name: As the table shows it.
        baseline: Name of the end-to-end line that this one is divided by.
        spec: Backbone, method, K.
        keywords: Keywords of the model.
        checkpointed: Whether timm's activation checkpointing is on.
        micro_batches: Slices of a batch that each block runs one after the other.
        compiled: Whether its blocks are compiled.
    """

    name: str
    baseline: str
    spec: LocalSpec
    keywords: dict[str, Any]
    checkpointed: bool = False
    micro_batches: int = 1
    compiled: bool = False


def line_up(args: Namespace) -> list[Candidate]:
    """End to end, checkpointed and the models named, for each backbone; then the same compiled.

    With micro-batches, checkpointed end to end has them as well, in a line of its own: gradients
    accumulate over the slices.

    Raises:
        ValueError: For a model that is no zoo name, or keywords that are not KEY=VALUE.
    """
    shared = dict(args.model_kwargs)
    of_backbone = {key: value for key, value in shared.items() if key not in PLANNERS}
    take_keywords(of_backbone)
    named: dict[str, Candidate] = {}
    for text in args.models:
        candidate = _sliced(parse_candidate(text, shared), args.micro_batches)
        spec = LocalSpec(candidate.spec.backbone, END_TO_END, 1)
        e2e = Candidate(spec.name, spec.name, spec, of_backbone)
        checkpointed = replace(e2e, name=f"{e2e.name}, checkpointed", checkpointed=True)
        sliced = _sliced(checkpointed, args.micro_batches)
        for one in (e2e, checkpointed, sliced, candidate):
            named.setdefault(one.name, one)
    eager = list(named.values())
    return eager + [_compiled(one) for one in eager if args.compile]


def _sliced(one: Candidate, count: int) -> Candidate:
    if count == 1:
        return one
    return replace(one, name=f"{one.name}, {count} micro-batches", micro_batches=count)


def _compiled(one: Candidate) -> Candidate:
    name, baseline = f"{one.name}, compiled", f"{one.baseline}, compiled"
    return replace(one, name=name, baseline=baseline, compiled=True)


def parse_candidate(text: str, shared: dict[str, Any]) -> Candidate:
    """``NAME[:KEY=VALUE ...]``, its own keywords over the shared ones.

    Raises:
        ValueError: For a name that is no zoo name, keywords that are not KEY=VALUE, or own ones
            that are not of the method.
    """
    name, *keywords = text.split(":")
    if not is_zoo_name(name):
        raise unknown("model", name, [known for known in timm.list_models() if is_zoo_name(known)])
    try:
        own = dict(map(keyword, keywords))
    except ArgumentTypeError as error:
        raise ValueError(f"{text}: {error}.") from error
    spec = LocalSpec(*parse_name(name))
    known = [*method_keywords(spec.method), *PLANNERS]
    for key in own.keys() - known:
        raise ValueError(
            f"{text}: {unknown(f'keyword of {spec.method}', key, known)} What is of the network "
            "goes into --model-kwargs, for end to end beside it has it too."
        )
    return Candidate(text, LocalSpec(spec.backbone, END_TO_END, 1).name, spec, shared | own)
