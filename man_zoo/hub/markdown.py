"""Words that others chose, as Markdown shows them: classes, data sets, tags, flags, machines."""

import re


def words(text: str) -> str:
    """A text within a line or a table: nothing in it is a link, HTML, code or a cell's end."""
    return re.sub(r"([\\`*_{}\[\]<>#+!|~&$:@])", r"\\\1", one_line(text))


def code(text: str) -> str:
    """A text as code within a line."""
    return _fenced(one_line(text), "", least=1)


def code_block(text: str) -> str:
    """A text as lines of code."""
    return _fenced("\n".join(map(_printable, text.splitlines())), "\n", least=3)


def one_line(text: str) -> str:
    """A text without what would end its line."""
    return _printable(" ".join(text.split()))


def _fenced(text: str, edge: str, least: int) -> str:
    """Between more backticks than stand together in it."""
    most = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    ticks = "`" * max(least, most + 1)
    return f"{ticks}{edge}{text}{edge}{ticks}"


def _printable(text: str) -> str:
    """Without what a file's name may hold: bytes that are no text, a terminal's commands."""
    return "".join(filter(str.isprintable, text))
