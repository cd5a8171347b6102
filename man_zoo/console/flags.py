"""The command line of every command."""

from argparse import ArgumentParser
from typing import NoReturn

from .errors import UserError


class Parser(ArgumentParser):
    """An ``ArgumentParser`` whose complaints are sentences for the caller to print."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.")
