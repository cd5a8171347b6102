"""The command line of every command."""

from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any, NoReturn

from timm.utils import ParseKwargs

from .errors import UserError


class Parser(ArgumentParser):
    """An ``ArgumentParser`` whose complaints are sentences for the caller to print."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.")


class Keywords(ParseKwargs):
    """timm's action for ``KEY=VALUE ...``, with YAML's booleans and a sentence for what is none."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = []
        for text in values:
            key, equals, value = text.partition("=")
            if not (key.isidentifier() and equals):
                raise ArgumentError(self, f"expected KEY=VALUE, got {text!r}")
            # timm takes Python's spelling alone, and "false" for a word, which is true.
            is_boolean = value.lower() in ("true", "false")
            given.append(f"{key}={value.capitalize() if is_boolean else value}")
        super().__call__(parser, namespace, given, option_string)


def output_file(text: str) -> Path:
    """A file that can be written, as a ``type`` of argparse, before what it is for takes minutes.

    Raises:
        ArgumentTypeError: If it is a folder, or there is no folder for it.
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(f"expected a file in a folder that is there, got {text!r}")
    return path
