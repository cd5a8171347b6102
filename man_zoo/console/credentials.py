"""Addresses may hold a secret, as ``HF_ENDPOINT=https://user:secret@host``: nobody is told it."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager


def without_credentials(text: str) -> str:
    """A text with ``https://host`` for every ``https://user:secret@host``."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


@contextmanager
def log_without_credentials(library: str) -> Iterator[None]:
    """Let what a library logs leave them out: huggingface_hub's names what it asks once more."""
    handlers = list(logging.getLogger(library).handlers)
    for handler in handlers:
        handler.addFilter(_hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_hide)


def _hide(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_credentials(record.getMessage()), None
    return True
