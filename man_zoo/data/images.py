"""From what a data set holds to what a network takes: one image at a time, named if it is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..console import UserError
from ..tasks import Classification

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")  # PIL modes


class UnreadableImage(UserError, ValueError):
    """An image that cannot be used as it is, in one sentence that names its file.

    A worker process of a ``DataLoader`` hands an exception on as its type and one string, the whole
    traceback; ``str`` is the sentence all the same.
    """

    of_one_process = True  # the one that has the image in its share

    def __str__(self) -> str:
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class ImageFiles(Dataset):
    """(PIL image, target) of one of timm's readers.

    timm's own ``ImageDataset`` puts the next image in the place of one that it cannot read.

    Args:
        reader: A ``timm.data.readers.reader.Reader`` of (open file, target).
        mode: As :func:`to_mode` takes it.
    """

    def __init__(self, reader: Any, mode: str):
        self.reader, self.mode = reader, mode

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        with naming(lambda: self._name(index)):
            file, target = self.reader[index]
            with file, Image.open(file) as image:
                return to_mode(image, self.mode), target

    def _name(self, index: int) -> str:
        name = str(self.reader.filename(index, absolute=True))
        root = str(self.reader.root)
        whole = name.startswith(root) or Path(name).is_absolute()
        return name if whole else f"{name} in {root}"


class TransformedImages(Dataset):
    """(transform(image in ``mode``), target) of a data set of PIL images, or of a plain list."""

    def __init__(self, source: Any, mode: str, transform: Any):
        self.source, self.mode, self.transform = source, mode, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.source[index]
        with naming(lambda: getattr(image, "filename", "") or f"Image {index}"):
            image, label = to_mode(image, self.mode), Classification.target(target)
        return self.transform(image), label


class StreamedImages(IterableDataset):
    """(transform(image in ``mode``), target) of a stream, which alone knows the files.

    Args:
        source: Of (PIL image, target).
        mode: As :func:`to_mode` takes it.
        transform: PIL image to tensor.
    """

    def __init__(self, source: IterableDataset, mode: str, transform: Any):
        self.source, self.mode, self.transform = source, mode, transform

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        samples = iter(self.source)
        while True:
            with naming(lambda: "The stream"):
                sample = next(samples, None)
                if sample is None:
                    return
                image, label = to_mode(sample[0], self.mode), Classification.target(sample[1])
            yield self.transform(image), label


def read_image(path: str, mode: str) -> Image.Image:
    """The image in a file, as :func:`to_mode` makes it.

    Raises:
        UnreadableImage: If there is none.
    """
    with naming(lambda: path), Image.open(path) as image:
        return to_mode(image, mode)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image as it looks, with 8 bits a channel.

    Pillow's ``convert`` alone clips 16 bits to white, and shows the colour that is hidden where an
    image is transparent; here it is white, as on paper.

    Args:
        image: Of any mode.
        mode: ``"L"`` or ``"RGB"``.

    Raises:
        ValueError: If nothing says which numbers are black and white.
    """
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"the range of its pixels is unknown (PIL mode {image.mode}); expected 8 or 16 bits a "
            "channel"
        )
    elif image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert(mode)


def read(loader: DataLoader, *, can_skip: bool = False) -> Iterator[Any]:
    """What a ``DataLoader`` yields, its workers gone at once if they met an unreadable image.

    Args:
        loader: Of images.
        can_skip: Whether ``--skip-bad-images``, which was not given, would leave such images out.

    Raises:
        UnreadableImage: As a worker raised it.
    """
    try:
        yield from loader
    except UnreadableImage as error:
        if can_skip:
            error.add_note("--skip-bad-images leaves such images out and counts them")
        # The loader's frames hold the error that holds them: collected late, they would wait for
        # every worker in vain.
        raise error.with_traceback(None) from None


@contextmanager
def naming(name: Callable[[], str]) -> Iterator[None]:
    """Say which image it is, whatever a decoder raises about a damaged one.

    Raises:
        UnreadableImage: In place of any error.
    """
    try:
        yield
    except Exception as error:
        raise UnreadableImage(f"{name()} cannot be used: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow knows"
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split()).rstrip(".")
