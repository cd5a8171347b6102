"""From ``--dataset NAME --data-dir DIR`` to a training and an evaluation loader.

Small images are decoded once and augmented on the device (:class:`MemoryLoader`); everything else
is streamed through timm's readers and transforms (:class:`StreamLoader`). Both yield (images,
targets), normalised and on the device, give the same batches whenever the same ``set_epoch`` is
asked for, and take their own share of the data in a distributed run, so neither goes to
``accelerator.prepare``.

    python -m man_zoo.data --dataset digits     # describe the data, measure the loaders
"""

from .flags import add_data_args
from .info import DATASETS, DatasetInfo, LoaderInfo
from .loaders import create_loaders, create_test_loader, evaluation_loader
from .memory_loader import MemoryLoader
from .sources import Split, choose_images, open_dataset, open_splits
from .stream_loader import StreamLoader
from .transforms import PIL_MODES, evaluation_transform

__all__ = [
    "DATASETS",
    "PIL_MODES",
    "DatasetInfo",
    "LoaderInfo",
    "MemoryLoader",
    "Split",
    "StreamLoader",
    "add_data_args",
    "choose_images",
    "create_loaders",
    "create_test_loader",
    "evaluation_loader",
    "evaluation_transform",
    "open_dataset",
    "open_splits",
]
