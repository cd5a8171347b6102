"""Markdown tables of results."""

from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

from .groups import Group, Groups
from .published import CIFAR10_ERROR, IMAGENET_ERROR

NOT_RUN = "not run"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """``51.22`` of one seed, ``51.22 ± 0.40 (3)`` of three."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f} ({len(values)})"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How far the mean is from another: ``-1.82``, or ``-1.82 ± 0.20`` where both have seeds.

    What stands behind is the standard error of the difference (Welch).
    """
    means = f"{mean(ours) - mean(theirs):+.2f}"
    if min(len(ours), len(theirs)) == 1:
        return means
    return f"{means} ± {sqrt(sum(variance(each) / len(each) for each in (ours, theirs))):.2f}"


def setting(group: Group) -> str:
    """What a group was trained on, how and where, as a table."""
    line, settings = group.first, group.first["settings"]
    machine = line["machine"]
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    rows = [
        ("data", f"{line['data']['name']}, {line['data']['train_count']:,} training images, "
         f"all {_count_tested(line['data']):,} test images"),
        ("schedule", f"{group.epochs} epochs, batch {settings['batch_size']}, "
         f"peak learning rate {settings['lr']}, {settings.get('mixed_precision', 'no')} precision"),
        ("machine", f"{device}, {machine['threads']} thread(s) a run"),
        ("software", f"Python {machine['python']}, torch {machine['torch']}, "
         f"timm {machine['timm']}"),
    ]  # fmt: skip
    return markdown(("", ""), rows)


def _count_tested(data: dict[str, Any]) -> int:
    """Images that the final figures are of: lines without a count were validated on the same."""
    return data.get("test_count", data["val_count"])


def methods(groups: Groups, rows: Sequence[tuple[str, str]], baseline: str) -> str:
    """Accuracy beside published accuracy, each with its distance to end to end.

    Args:
        groups: The results.
        rows: Label and name of each row.
        baseline: Name of end to end.
    """
    e2e = groups[baseline]
    body = []
    for label, name in rows:
        group = groups[name]
        theirs = ("-", "-")
        if name in CIFAR10_ERROR:
            error = CIFAR10_ERROR[name]
            theirs = f"{100 - error:.2f}", f"{CIFAR10_ERROR[baseline] - error:+.2f}"
        body.append((*_distance(label, group, e2e), *theirs, *_cost(group, e2e)))
    return markdown((*_DISTANCE, "published top-1 %", "to e2e", *_COST), body)


def distances(groups: Groups, rows: Sequence[tuple[str, str]], baseline: str) -> str:
    """Accuracy, its distance to end to end, and what each row cost.

    Args:
        groups: The results.
        rows: Label and name of each row.
        baseline: Name of end to end.
    """
    e2e = groups[baseline]
    body = [
        (*_distance(label, groups[name], e2e), *_cost(groups[name], e2e)) for label, name in rows
    ]
    return markdown((*_DISTANCE, *_COST), body)


_DISTANCE = ("method", "config", "top-1 %", "to e2e")


def _distance(label: str, group: Group, e2e: Group) -> tuple[str, str, str, str]:
    distance = "-" if group is e2e else difference(group.tops, e2e.tops)
    return label, f"`{group.name}`", spread(group.tops), distance


def ablation(groups: Groups, rows: Sequence[tuple[str, str, str]], baseline: str) -> str:
    """Accuracy at equal epochs, and of a longer run at the arithmetic of the dearest.

    Args:
        groups: The results.
        rows: Label, name and name of the longer run (or an empty string) of each row.
        baseline: Name of end to end.
    """
    body = []
    for label, name, longer in rows:
        more = "-"
        if longer:
            more = f"{groups[longer].top1:.2f} ({groups[longer].epochs} epochs)"
        group = groups[name]
        body.append((label, spread(group.tops), *_cost(group, groups[baseline]), more))
    return markdown(("", "top-1 %", *_COST, "top-1 % at equal arithmetic"), body)


def heads(groups: Groups, rows: Sequence[tuple[str, str]], baseline: str) -> str:
    """Auxiliaries side by side: what they are chosen by, what they reach, what they cost.

    Args:
        groups: The results.
        rows: Label and name of each row.
        baseline: Name of the row whose arithmetic and memory are 1.
    """
    base = groups[baseline].first
    body = []
    for label, name in rows:
        group = groups[name]
        costs = (group.first[key] / base[key] for key in ("flops_per_image", "peak_gib"))
        scores = (group.held_out, [line["exits"][0] for line in group.lines], group.tops)
        body.append((label, *map(spread, scores), *(f"{cost:.2f}" for cost in costs)))
    header = ("head", "held-out top-1 %", "first exit, test %", "network, test %", "arithmetic")
    return markdown((*header, "peak"), body)


def by_model(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``man-zoo benchmark --json`` has written of each model, by what the model is called."""
    return {line["model"]: line for line in found["results"]}


def equal_memory(
    lines: dict[str, dict[str, Any]], groups: Groups, rows: Sequence[tuple[str, str, str]]
) -> str:
    """What each way to train takes within about the same memory, and how accurate it is.

    Args:
        lines: As :func:`by_model` gives them.
        groups: The results.
        rows: Label, model as the benchmark has it, and name of the runs, of each row.
    """
    body = [
        (
            label,
            f"{1024 * lines[model]['peak_gib']:.0f}",
            f"{lines[model]['arithmetic_ratio']:.2f}",
            spread(groups[name].tops),
        )
        for label, model, name in rows
    ]
    return markdown(("", "peak MiB", "arithmetic", "top-1 %"), body)


def accuracies(groups: Groups, rows: Sequence[tuple[str, str]]) -> str:
    """Top-1 of each row, a label and a name, and nothing else."""
    return markdown(("", "top-1 %"), [(label, spread(groups[name].tops)) for label, name in rows])


def weights(entries: Sequence[dict[str, Any]], tag: str) -> str:
    """The index's weights of a tag, with the top-1 that they have on the test images."""
    body = [
        (f"`{entry['name']}.{tag}`", f"{entry['metrics']['top1']:.2f}")
        for entry in entries
        if entry["tag"] == tag
    ]
    return markdown(("weights", "top-1 %"), body)


def scores(
    groups: Groups,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, Sequence[str]]],
    baseline: str,
) -> str:
    """Scores of a dense task, and what each row cost.

    Args:
        groups: The results.
        rows: Label and name of each row.
        columns: Header and keys of each score, as :meth:`Group.scores` takes them.
        baseline: Name of end to end.
    """
    body = []
    for label, name in rows:
        group = groups[name]
        found = [spread(group.scores(*keys)) for _, keys in columns]
        body.append((label, f"`{name}`", *found, *_cost(group, groups[baseline])))
    return markdown(("", "config", *(header for header, _ in columns), *_COST), body)


_COST = ("peak MiB", "arithmetic", "s")


def _cost(group: Group, e2e: Group) -> tuple[str, str, str]:
    ratio = group.first["flops_per_image"] / e2e.first["flops_per_image"]
    return f"{1024 * group.first['peak_gib']:.0f}", f"{ratio:.2f}", f"{group.seconds:.0f}"


def depths(found: dict[str, Any]) -> str:
    """Probes and CKA of an analysis, a row for every depth.

    Args:
        found: As :mod:`man_zoo.analysis` writes it.
    """
    runs, reference = found["runs"], found["reference"]
    others = [run for run in runs if run["label"] != reference]
    columns = [[f"{top1:.2f}" for top1 in run["probes"]] for run in runs]
    columns += [[f"{cka:.3f}" for cka in run["cka_with_reference"]] for run in others]
    header = [
        "after unit",
        *(f"probe on {run['label']}, top-1 %" for run in runs),
        *(f"CKA of {run['label']} with {reference}" for run in others),
    ]
    return markdown(header, zip(found["depths"], *columns, strict=True))


def published(configs: Path, groups: Groups) -> str:
    """Every published cell, its config, and our error on the published schedule if it was run.

    Args:
        configs: ``recipes/configs``.
        groups: Results on the published schedules.
    """
    cells = [("cifar10", name, error, "-") for name, error in CIFAR10_ERROR.items()]
    cells += [
        ("imagenet", name, error, f"{gb:.2f}") for name, (error, gb) in IMAGENET_ERROR.items()
    ]
    body = []
    for data, name, error, memory in cells:
        path = next((configs / data).glob(f"**/{name}.yaml")).relative_to(configs)
        ours = f"{100 - groups[name].top1:.2f}" if name in groups else NOT_RUN
        body.append((f"`{path}`", f"{error:.2f}", memory, ours))
    return markdown(("config", "published top-1 error %", "published memory, GB", "ours"), body)
