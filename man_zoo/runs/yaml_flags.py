"""YAML as a command line: argparse then checks names, types and choices, as it does for flags."""

import re
from argparse import Action, ArgumentParser, BooleanOptionalAction
from pathlib import Path
from typing import Any

import yaml

from ..console import Keywords, UserError, disk_errors, user_errors
from ..messages import flag_of, unknown
from .flags import build_parser


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: ``on``, ``off`` and ``no`` are words here (``in-memory: off``)."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))


# Flags of one invocation, not of the run: not saved beside it, and in no file.
INVOCATION = ("config", "resume", "overwrite")


def read_yaml(path: Path, parser: ArgumentParser, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The flags of a YAML file over those of the file that it names as its ``base``.

    Args:
        path: The file.
        parser: That the flags are for.
        above: Files that have this one as their base.

    Raises:
        UserError: For a file that is missing, no list of flags, or a base of itself, and for flags
            that are not understood; names the file.

    Returns:
        Values by the flag's name in Python, ``train_subset``.
    """
    if path.resolve() in above:
        raise UserError(f"{path} is a base of itself.")
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    values = load_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} is no list of flags; expected lines such as 'lr: 0.1'.")
    base = values.pop("base", None)
    below = {}
    if base is not None:
        below = read_yaml(path.parent / str(base), parser, (*above, path.resolve()))
    with user_errors(UserError, ValueError, about=str(path)):
        parser.parse_args(words_of(values))
    return below | {dest_of(key): value for key, value in values.items()}


def load_yaml(path: Path) -> Any:
    """What a YAML file holds; ``on``, ``off`` and ``no`` are words in it.

    Raises:
        UserError: If it is not YAML.
    """
    kinds = (yaml.YAMLError, UnicodeDecodeError, RecursionError)
    with disk_errors(path), user_errors(*kinds, about=f"{path} is not YAML"):
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)


def words_of(values: dict[str, Any]) -> list[str]:
    """Flags and their values, as YAML has them, as words of a command line.

    Raises:
        ValueError: For a flag that there is not, or a value that is none of it.
    """
    actions = {action.dest: action for action in build_parser()._actions}
    for dest in (*INVOCATION, "help"):
        del actions[dest]
    words = []
    for key, value in values.items():
        if dest_of(key) not in actions:
            raise unknown("key", key, sorted(actions))
        words += words_of_flag(actions[dest_of(key)], value)
    return words


def words_of_flag(action: Action, value: Any) -> list[str]:
    """One YAML value as it would stand on the command line."""
    flag = flag_of(action.dest)
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{flag} is true or false, not {value!r}.")
        if isinstance(action, BooleanOptionalAction):
            return [flag if value else flag.replace("--", "--no-", 1)]
        return [flag] if value else []
    if isinstance(action, Keywords):
        if not isinstance(value, dict):
            raise ValueError(f"{flag} is a mapping such as {{key: value}}, not {value!r}.")
        return [flag, *(f"{key}={item}" for key, item in value.items())]
    if action.nargs is None:
        return [f"{flag}={value}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def dest_of(key: Any) -> str:
    """``train-subset`` -> ``train_subset``."""
    return str(key).replace("-", "_")
