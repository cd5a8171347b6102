"""What a task answers: the rest of the library asks, and knows of no task."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from .decoder import Decoder, Exit
from .pictures import Draw
from .tally import Tally


class ExitSite(Protocol):
    """What a task may know of where an exit stands: :class:`man_zoo.auxiliary.Site` says it."""

    @property
    def channels(self) -> int:
        """Of the map that the exit receives."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of that map."""

    @property
    def next_size(self) -> tuple[int, int]:
        """Height and width of the map that the next block's first unit gives."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""

    def norm2d(self, channels: int) -> nn.Module:
        """The norm after a convolution of ``channels`` outputs."""


class Task(Protocol):
    """What is learnt: a frozen dataclass with a field ``num_classes`` and whatever it needs beside.

    Target and prediction are one tensor each, with the images of a batch in front, so that they can
    be sliced, sent and detached by who knows nothing of them. A loss is a mean over images.
    """

    name: ClassVar[str]
    """As ``localize(task=)`` and ``--task`` take it."""

    main_score: ClassVar[str]
    """Which of the ``scores`` says how good a network is; more is better."""

    percent: ClassVar[Mapping[str, str]]
    """Words for the scores that are told of a network, in percent, the main one first."""

    usual_classes: ClassVar[int]
    """Of the data set that results are published on: for a plan where nobody says."""

    dense: ClassVar[bool]
    """Whether a decoder stands on the backbone's maps, in place of its own head."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""

    def with_classes(self, num_classes: int) -> Self:
        """The same task with so many classes."""

    @property
    def least_images(self) -> int:
        """How many images a batch, or a slice of it, must have to train on."""

    # The network ----------------------------------------------------------------------------------

    def decoder(
        self, maps: Sequence[torch.Size], input_size: tuple[int, int, int]
    ) -> Decoder | None:
        """A new decoder, from maps to prediction; ``None`` if the task is not dense.

        Args:
            maps: ``(1, C, H, W)`` of every unit, in order; the last is that of the backbone's
                ``forward_features``.
            input_size: ``(channels, height, width)`` of the images.

        Raises:
            ValueError: For maps that it cannot stand on.
        """

    def exit(self, site: ExitSite) -> Exit | None:
        """A new small decoder behind a cut, from a map ``(B, C, H, W)`` to a prediction.

        ``None`` if the task is not dense: every method brings a classifier of its own.
        """

    def to_image(self, prediction: Tensor, size: tuple[int, int]) -> Tensor:
        """A prediction as users get it, of images of ``size`` (height, width)."""

    # Training -------------------------------------------------------------------------------------

    def criterion(self, smoothing: float = 0.0) -> nn.Module:
        """The loss ``(prediction, target) -> scalar`` of the network and of every exit.

        Args:
            smoothing: Of labels.
        """

    def random_target(
        self, count: int, size: tuple[int, int], device: torch.device | None = None
    ) -> Tensor:
        """A target of ``count`` images of ``size`` that means nothing: for planner and meter."""

    # Scores ---------------------------------------------------------------------------------------

    def tally(self) -> Tally:
        """A new one: of no images."""

    def scores(self, tallies: Sequence[Tally]) -> dict[str, Any]:
        """Scores by name, ``loss`` among them, of all images that these have counted.

        A number, or for a score that every class has of its own a list of them.
        """

    # Pictures -------------------------------------------------------------------------------------

    draw: ClassVar[Draw | None]
    """Draws images with targets, or what :meth:`drawable` makes, beside them, if there is such."""

    def drawable(self, prediction: Tensor) -> Any:
        """What ``draw`` takes in a target's place.

        Args:
            prediction: As :meth:`to_image` gives it.
        """
