"""What ``recompute=`` takes: names of parts, and a mode for each."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..messages import unknown
from .modes import MODES, PARTS, WHOLE, modes_of

UNITS, AUXILIARIES = "units", "auxiliaries"


def choose_recompute(
    recompute: str | Sequence[str] | None,
    names: Sequence[str],
    modules: Sequence[nn.Module],
    auxiliaries: int | None,
) -> tuple[dict[int, str], dict[int, str]]:
    """Modes of the units and of the auxiliaries that are recomputed, by index.

    Args:
        recompute: A sequence, or one string with spaces or commas, of modes, parts and
            ``part=mode``; the last that names a part counts. A part is ``"units"``,
            ``"auxiliaries"``, the name of a unit or of an auxiliary (``"auxiliaries.0"``); its mode
            is ``"all"`` where none is given. A mode alone is that of every part that has it.
        names: Names of the units.
        modules: The units.
        auxiliaries: How many auxiliaries there are; ``None`` where nobody knows yet, and they are
            recomputed all together: the mode is that of the first.

    Raises:
        ValueError: For a name that is none of these, or a mode that a part does not have.
    """
    of_units = {name: modes_of(module) for name, module in zip(names, modules, strict=True)}
    general = tuple(mode for mode in MODES if mode not in PARTS)
    count = 1 if auxiliaries is None else auxiliaries
    of_auxiliaries = {f"{AUXILIARIES}.{j}": general for j in range(count)}
    every = of_units | of_auxiliaries
    single = of_units if auxiliaries is None else every
    groups = {UNITS: of_units, AUXILIARIES: of_auxiliaries}
    chosen: dict[str, str] = {}
    given = recompute or ()
    for entry in given.replace(",", " ").split() if isinstance(given, str) else given:
        part, equals, mode = entry.partition("=")
        mode = mode if equals else WHOLE
        if entry in MODES:
            parts, mode = every, entry
        elif part in groups:
            parts = groups[part]
        elif part in single:
            parts = {part: single[part]}
        else:
            raise unknown("recompute", part, (*groups, *MODES, *single))
        having = [name for name, modes in parts.items() if mode in modes]
        if parts and not having:
            possible = dict.fromkeys(mode for modes in parts.values() for mode in modes)
            raise unknown(f"mode of recompute for {part}", mode, possible)
        chosen |= dict.fromkeys(having, mode)
    return _by_index(chosen, of_units), _by_index(chosen, of_auxiliaries)


def _by_index(chosen: dict[str, str], names: Iterable[str]) -> dict[int, str]:
    return {i: chosen[name] for i, name in enumerate(names) if name in chosen}


def recompute_names(
    names: Sequence[str], units: Mapping[int, str], auxiliaries: Mapping[int, str]
) -> tuple[str, ...]:
    """Modes of units and of auxiliaries, by index, as :func:`choose_recompute` takes them."""
    chosen = {names[i]: units[i] for i in sorted(units)}
    chosen |= {f"{AUXILIARIES}.{j}": auxiliaries[j] for j in sorted(auxiliaries)}
    return tuple(part if mode == WHOLE else f"{part}={mode}" for part, mode in chosen.items())
