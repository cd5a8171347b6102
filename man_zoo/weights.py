"""Published weights: ``hub/index.json``, and a folder each with card, config and small weights.

What can be loaded by name is what stands here. An entry has the sha256 of its weights, the metrics
that their run measured, and the repository on the Hub, ``null`` until they are pushed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HTTPError
from timm.models import resolve_model_input_args

from .console import UserError, log_without_credentials, without_credentials
from .spec import parse_name

CARD, CONFIG, WEIGHTS, INDEX = "README.md", "config.json", "model.safetensors", "index.json"
DECODER = "decoder.safetensors"  # of a dense task, beside the backbone's weights
SMALL = 10_000_000  # bytes; heavier weights are on the Hub alone

_WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
PACKAGE = Path(__file__).parent
# A wheel carries the index inside the package.
HUB = next(
    (hub for hub in (PACKAGE / "_hub", PACKAGE.parent / "hub") if os.path.isfile(hub / INDEX)),
    PACKAGE.parent / "hub",
)


class BrokenIndexError(UserError, RuntimeError):
    """The index of published weights, or what belongs to it, cannot be read."""


@dataclass(frozen=True)
class Weights:
    """An entry of the index.

    Raises:
        ValueError: As :func:`check_title`.

    Args:
        name: Zoo name.
        tag: What they are called after it, as in timm.
        sha256: Of ``model.safetensors``.
        size: Bytes of the same.
        metrics: ``top1`` and ``top5`` in percent and ``loss`` on the validation images.
        repository: ``ORG/NAME`` on the Hub, if they were pushed.
        revision: The commit there.
    """

    name: str
    tag: str
    sha256: str
    size: int
    metrics: dict[str, float]
    repository: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_title(self.name, self.tag)

    @property
    def title(self) -> str:
        """``{name}.{tag}``."""
        return f"{self.name}.{self.tag}"

    @property
    def folder(self) -> Path:
        """Card, config and, if they are small, the weights themselves."""
        return HUB / self.title

    @property
    def can_be_loaded(self) -> bool:
        """Whether the weights are here or on the Hub."""
        return self.repository is not None or (self.folder / WEIGHTS).is_file()

    @property
    def absence(self) -> str:
        """Where weights are that cannot be loaded, in words."""
        where = (
            f"they are hub/{self.title}/{WEIGHTS} in a checkout of man_zoo. Use one "
            "(pip install -e .)"
            if self.size < SMALL
            else "who made them has yet to push them. Wait for that"
        )
        return (
            f"The weights of {self.title} are not in this installation and not on the Hub yet: "
            f"{where}, or train them: {train_command(self.name)}."
        )

    def arguments(self, file: Path | None = None) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` for the network that the weights are of.

        Args:
            file: Where the weights are; by default where they will be fetched from, if they can be.
        """
        if file is None and self.can_be_loaded:
            file = self.folder / WEIGHTS
        arguments = resolve_model_input_args(f"local-dir:{self.folder}")
        arguments.pop("model_name")
        arguments["pretrained_cfg"] |= {
            "source": None,
            "file": file and str(file),
            "tag": self.tag,
        }
        if self.repository:
            arguments["pretrained_cfg"]["hf_hub_id"] = f"{self.repository}@{self.revision}"
        return arguments

    def fetch(self, cache_dir: str | Path | None = None) -> Path:
        """The file of the weights: from ``hub/`` if they are there, else from the Hub.

        Raises:
            RuntimeError: If they cannot be fetched, or are not what was published.
        """
        file = self.folder / WEIGHTS
        if not file.is_file():
            file = self._download(cache_dir)
        if sha256(file) != self.sha256:
            raise RuntimeError(
                f"{file} is not the file that {self.title} was published as (its sha256 is another "
                "one): it was cut short or altered; delete it and get it again."
            )
        return file

    def _download(self, cache_dir: str | Path | None) -> Path:
        assert self.repository is not None
        try:
            with log_without_credentials("huggingface_hub"):
                path = hf_hub_download(
                    self.repository, WEIGHTS, revision=self.revision, cache_dir=cache_dir
                )
        except (HTTPError, OSError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".:")
            said = without_credentials(
                f"The weights of {self.title} could not be fetched from "
                f"{constants.ENDPOINT}/{self.repository} ({reason}); check the network, "
                f"HF_ENDPOINT and HF_TOKEN, or train them: {train_command(self.name)}."
            )
            raise RuntimeError(said) from None  # what it is from may hold credentials
        return Path(path)


def is_installed() -> bool:
    """Whether the index is that of an installed package, which is no place to write into."""
    return PACKAGE in HUB.parents


def check_title(name: str, tag: str) -> None:
    """See that weights have a name that is also one of a folder in ``hub/``, and of no other.

    Raises:
        ValueError: For a name that is none of the zoo's, or a tag that is more than one word.
    """
    for kind, text in (("name", name), ("tag", tag)):
        if not _WORD.fullmatch(str(text)):
            raise ValueError(
                f"{text!r} is no {kind} of weights; expected letters, digits and . _ -, and no dot "
                "in front."
            )
    parse_name(name)


def read_index() -> dict[str, Weights]:
    """Every entry by its title, ``{name}.{tag}``.

    Raises:
        BrokenIndexError: If the index, or what an entry says of its network, cannot be read.
    """
    path = HUB / INDEX
    with _is_whole(path):
        text = path.read_text(encoding="utf-8") if path.exists() else "[]"
        weights = [Weights(**entry) for entry in json.loads(text)]
        for one in weights:
            parse_name(one.name)
            float(one.metrics["top1"])
    for one in weights:
        with _is_whole(one.folder / CONFIG):
            one.arguments()
    return {one.title: one for one in weights}


@contextmanager
def _is_whole(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever stands there, it is the file's fault
        said = " ".join(str(error).split())
        raise BrokenIndexError(
            f"{file} is no index of weights, or not all of it ({type(error).__name__}: {said}); "
            "expected it as it came with man_zoo: restore it, or install man_zoo again."
        ) from error


def train_command(name: str) -> str:
    """The command that trains a model of the zoo."""
    return f"man-zoo train --model {name}"


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
