"""The loaders: reproducible by epoch, exact over ranks, and clear about what is missing."""

import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import loaders, parse, state, write_images
from timm.data import IterableImageDataset
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms as tv

from man_zoo.data import MemoryLoader, StreamLoader, create_loaders, create_test_loader
from man_zoo.data.sampling import epoch_generator


def noise(count=40, channels=3, size=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        256, (count, channels, size, size), dtype=torch.uint8, generator=generator
    )
    return images, torch.arange(count)


def memory_loader(batch_size=8, **keywords):
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "train": True, "padding": 2, "hflip": 0.5}
    return MemoryLoader(*noise(), batch_size, **(settings | keywords))


def epoch_of(loader, epoch=0):
    loader.set_epoch(epoch)
    return [(images.clone(), targets.clone()) for images, targets in loader]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def joined(ranks):
    """The global batches that the ranks' local ones make up."""
    return [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True))
        for step in zip(*ranks, strict=True)
    ]


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=3)
    return tmp_path


# ------------------------------------------------------------------------------------ in memory


def test_memory_epoch_is_reproducible_and_differs_from_others():
    loader = memory_loader()
    first = epoch_of(loader, 3)
    assert same(first, epoch_of(loader, 3))
    assert same(first, epoch_of(memory_loader(), 3))
    assert not same(first, epoch_of(loader, 4))
    assert not same(first, epoch_of(memory_loader(seed=1), 3))


def test_memory_two_ranks_see_one_double_batch():
    ranks = [epoch_of(memory_loader(4, rank=rank, world_size=2), 5) for rank in (0, 1)]
    assert same(joined(ranks), epoch_of(memory_loader(8), 5))


def test_memory_training_drops_the_last_partial_batch():
    loader = memory_loader(12)
    batches = epoch_of(loader)
    assert [len(targets) for _, targets in batches] == [12, 12, 12]
    assert len(loader) == 3
    seen = torch.cat([targets for _, targets in batches])
    assert len(seen.unique()) == 36


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_memory_evaluation_covers_each_image_once_in_plain_form(world_size):
    shards = [
        memory_loader(6, train=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [epoch_of(shard) for shard in shards]
    assert [len(b) for b in batches] == [len(shard) for shard in shards]
    flat = [batch for shard in batches for batch in shard]
    images, targets = noise()
    assert torch.equal(torch.cat([labels for _, labels in flat]), targets)
    expected = (images / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.cat([pixels for pixels, _ in flat]), expected)


def test_memory_more_ranks_than_images():
    loader = MemoryLoader(*noise(1), 4, mean=[0.5] * 3, std=[0.5] * 3, rank=0, world_size=2)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize("padding_mode", ["reflect", "constant"])
def test_memory_images_are_shifted_or_flipped_windows(padding_mode):
    loader = memory_loader(padding_mode=padding_mode, mean=[0.0] * 3, std=[1 / 255] * 3)
    originals, _ = noise()
    shifts, flips = set(), set()
    for images, targets in epoch_of(loader) + epoch_of(loader, 1):
        for image, target in zip(images, targets, strict=True):
            padded = np.pad(originals[target].numpy(), ((0, 0), (2, 2), (2, 2)), mode=padding_mode)
            found = [
                (y, x, flip)
                for y in range(5)
                for x in range(5)
                for flip in (False, True)
                if np.array_equal(
                    padded[:, y : y + 8, x : x + 8][..., :: -1 if flip else 1],
                    image.round().numpy(),
                )
            ]
            assert len(found) == 1
            shifts.add(found[0][:2])
            flips.add(found[0][2])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))
    assert flips == {False, True}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_memory_flip_probability(probability):
    loader = memory_loader(padding=0, hflip=probability, mean=[0.0] * 3, std=[1 / 255] * 3)
    originals, _ = noise()
    for images, targets in epoch_of(loader):
        expected = originals[targets].flip(-1) if probability else originals[targets]
        torch.testing.assert_close(images, expected.float())


def test_memory_output_format():
    images, targets = next(iter(memory_loader(dtype=torch.bfloat16)))
    assert images.dtype == torch.bfloat16
    assert targets.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert next(iter(memory_loader(channels_last=False)))[0].is_contiguous()


def test_memory_set_smaller_than_a_global_batch():
    with pytest.raises(ValueError, match=r"40 images.*global batch of 64.*--batch-size 20 or less"):
        memory_loader(32, world_size=2)


class Operations(TorchDispatchMode):
    """The operations that ran, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.names.append(str(operation))
        return operation(*arguments, **(keywords or {}))


def operations_of_a_batch(batch_size):
    batches = iter(memory_loader(batch_size))
    next(batches)  # begins the epoch
    with Operations() as operations:
        next(batches)
    return operations.names


def test_memory_a_batch_is_one_selection_whatever_its_size():
    assert operations_of_a_batch(4).count("aten.index_select.default") == 1
    assert operations_of_a_batch(4) == operations_of_a_batch(20)


def test_generator_depends_on_seed_and_epoch_separately():
    draws = {
        torch.rand((), generator=epoch_generator(seed, epoch)).item()
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(draws) == 25


# ------------------------------------------------------------------------------------ streaming


def stream_loader(source, batch_size=4, **keywords):
    transform = tv.Compose([tv.RandomResizedCrop(16), tv.ColorJitter(0.4), tv.ToTensor()])
    return StreamLoader(source, batch_size, transform, train=True, **keywords)


@pytest.fixture
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (18, 24, 24, 3)).astype(np.uint8)
    return [(Image.fromarray(image), index) for index, image in enumerate(pixels)]


def test_stream_is_reproducible_with_any_number_of_workers(pictures):
    resumed = epoch_of(stream_loader(pictures, workers=2), 2)
    uninterrupted = stream_loader(pictures, workers=0)
    epochs = [epoch_of(uninterrupted, epoch) for epoch in range(3)]
    assert same(epochs[2], resumed)
    assert not same(epochs[1], epochs[2])


def test_stream_two_ranks_see_one_double_batch(pictures):
    ranks = [epoch_of(stream_loader(pictures, rank=rank, world_size=2), 1) for rank in (0, 1)]
    assert same(joined(ranks), epoch_of(stream_loader(pictures, 8), 1))


def test_stream_leaves_the_random_state_of_the_training_loop_alone(pictures):
    def draw():
        return random.random(), np.random.random(), torch.rand(()).item()

    def seed():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    seed()
    expected = draw()
    seed()
    epoch_of(stream_loader(pictures))
    assert draw() == expected


def test_stream_of_an_iterable_data_set_follows_the_epoch(pictures):
    class Reader:
        epoch = 0

        def __iter__(self):
            return iter(pictures[self.epoch :] + pictures[: self.epoch])

        def __len__(self):
            return len(pictures)

        def set_epoch(self, epoch):
            self.epoch = epoch

    loader = stream_loader(IterableImageDataset(None, reader=Reader()), workers=1)
    first = epoch_of(loader, 3)
    assert len(first) == len(loader) == 4
    assert first[0][1].tolist() == [3, 4, 5, 6]
    assert same(first, epoch_of(loader, 3))
    assert not same(first, epoch_of(loader, 2))


# ------------------------------------------------------------------------------ sources and flags


def test_digits_by_default():
    train, val, info = loaders("--batch-size", 64)
    assert isinstance(train, MemoryLoader)
    assert train.padding == 2
    assert train.hflip == 0
    assert (info.num_classes, info.train_count, info.val_count) == (10, 1437, 360)
    assert info.input_size == (3, 16, 16)
    assert "digits" in info.name
    images, _ = next(iter(train))
    assert images.shape == (64, 3, 16, 16)
    assert -1 <= images.min() < images.max() <= 1
    assert torch.equal(images[:, 0], images[:, 2])
    counts = torch.cat([labels for _, labels in val]).bincount()
    assert counts.sum() == 360
    assert counts.min() >= 34
    again = loaders("--batch-size", 64)[0]
    assert torch.equal(next(iter(again))[0], images)


def test_digits_grey_at_another_size():
    train, _, info = loaders("--in-chans", 1, "--img-size", 20, "--mean", 0.3, "--std", 0.4)
    assert info.input_size == (1, 20, 20)
    assert info.mean == (0.3,)
    assert info.std == (0.4,)
    assert next(iter(train))[0].shape == (64, 1, 20, 20)


def test_small_folder_is_held_in_memory_at_its_own_size(folder):
    flags = ("--dataset", "folder", "--data-dir", folder, "-b", 5, "-vb", 4)
    train, val, info = loaders(*flags, data_config={"input_size": (3, 224, 224)})
    assert isinstance(train, MemoryLoader)
    assert info.in_memory
    assert train.padding == 3
    assert info.input_size == (3, 24, 24)
    assert info.class_names == ("cat", "dog")
    assert [len(labels) for _, labels in val] == [4, 2]
    assert torch.cat([labels for _, labels in val]).tolist() == [0] * 3 + [1] * 3
    stream = loaders(*flags, "--in-memory", "off", "-j", 0)[1]
    for (held, _), (read, _) in zip(val, stream, strict=True):
        torch.testing.assert_close(held, read)


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_subset_is_the_same_whatever_the_seed(memory):
    flags = ("--train-subset", 100, "-b", 100, "-j", 0, "--no-aug", "--in-memory", memory)
    first, second, other = (
        create_loaders(parse(*flags, *more, seed=seed), state())
        for seed, more in ((0, ()), (1, ()), (0, ("--train-subset", 101)))
    )
    (images, _), (again, _) = next(iter(first[0])), next(iter(second[0]))
    assert not torch.equal(images, again)  # the seed orders them
    assert torch.equal(images.flatten(1).unique(dim=0), again.flatten(1).unique(dim=0))
    assert (first[2].train_count, other[2].train_count) == (100, 101)
    assert first[2].val_count == 360
    assert first[2].num_classes == 10


@pytest.mark.parametrize("memory", ["on", "off"])
def test_held_out_images_are_not_trained_on_and_the_same_whatever_the_seed(memory):
    flags = ("--val-holdout", 137, "-b", 100, "-j", 0, "--no-aug", "--in-memory", memory)
    first, second = (create_loaders(parse(*flags, seed=seed), state()) for seed in (0, 1))
    assert (first[2].train_count, first[2].val_count) == (1300, 137)
    held_out, again = (torch.cat([x for x, _ in val]) for _, val, _ in (first, second))
    assert torch.equal(held_out, again)
    everything = torch.cat([x for x, _ in first[0]] + [held_out]).flatten(1)
    plain = create_loaders(parse("-b", 1437, "-j", 0, "--no-aug"), state())[0]
    (images, _) = next(iter(plain))
    assert len(everything) == 1437
    torch.testing.assert_close(everything.sum(1).sort()[0], images.flatten(1).sum(1).sort()[0])


def test_the_test_split_is_looked_at_apart_from_held_out_images():
    args = parse("--val-holdout", 137, "-b", 100, "-j", 0)
    info = create_loaders(args, state())[2]
    plain = create_loaders(parse("-b", 100, "-j", 0), state())[1]
    test = torch.cat([x for x, _ in create_test_loader(args, state(), info)])
    torch.testing.assert_close(test, torch.cat([x for x, _ in plain]))


def test_a_label_names_the_data():
    assert loaders("--data-label", "my scans")[2].name == "my scans at 16x16"


def test_augmentation_flags_ask_for_streaming(folder):
    flags = ("--dataset", "folder", "--data-dir", folder, "-b", 4, "-j", 0)
    train, _, info = loaders(*flags, "--aa", "rand-m9-mstd0.5", "--reprob", 0.25)
    assert isinstance(train, StreamLoader)
    assert not info.in_memory
    assert same(epoch_of(train, 1), epoch_of(train, 1))
    assert not same(epoch_of(train, 1), epoch_of(train, 2))


def test_large_images_are_streamed_at_the_model_size(tmp_path):
    write_images(tmp_path / "train", size=120)
    write_images(tmp_path / "val", count=2, size=120)
    flags = ("--dataset", "folder", "--data-dir", tmp_path, "-b", 4, "-j", 0)
    train, val, info = loaders(*flags, data_config={"input_size": (3, 64, 64), "crop_pct": 0.9})
    assert isinstance(train, StreamLoader)
    assert info.input_size == (3, 64, 64)
    assert next(iter(train))[0].shape == next(iter(val))[0].shape == (4, 3, 64, 64)
    held, _, info = loaders(*flags, "--in-memory", "on", "--img-size", 16)
    assert isinstance(held, MemoryLoader)
    assert (info.crop_pct, info.crop_mode) == (1.0, "squash")  # as they are decoded
    assert next(iter(held))[0].shape == (4, 3, 16, 16)


def test_one_small_image_makes_no_set_of_small_ones(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, size=120)
    first = min((tmp_path / "train").glob("*/*"))
    Image.open(first).resize((60, 90)).save(first)
    flags = ("--dataset", "folder", "--data-dir", tmp_path, "-b", 4, "-j", 0)
    train, _, info = loaders(*flags, data_config={"input_size": (3, 64, 64)})
    assert isinstance(train, StreamLoader)
    assert info.input_size == (3, 64, 64)


def test_tar_files_and_grey_images(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, count=4, mode="L")
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(tmp_path / "images" / split, arcname=".")
    train, val, info = loaders("--dataset", "tar", "--data-dir", tmp_path, "-b", 4)
    assert info.class_names == ("cat", "dog")
    assert info.train_count == 8
    images, _ = next(iter(val))
    assert images.shape[1] == 3
    flags = ("--dataset", "tar", "--data-dir", tmp_path, "-b", 2, "--in-memory", "off")
    alone, shared = (loaders(*flags, "-j", workers)[0] for workers in (0, 2))
    assert same(epoch_of(alone), epoch_of(shared))
    assert len(train) == 2


def test_classes_keep_the_training_numbers(tmp_path):
    write_images(tmp_path / "train", classes=("ant", "bee", "cow"))
    write_images(tmp_path / "val", classes=("bee", "cow"), count=2)
    _, val, _ = loaders("--dataset", "folder", "--data-dir", tmp_path, "-b", 4)
    assert torch.cat([labels for _, labels in val]).tolist() == [1, 1, 2, 2]


def test_published_settings_of_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 6)):
        pixels = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = np.array([0x801, count], ">i4").tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    flags = ("--dataset", "fashion_mnist", "--data-dir", tmp_path, "-b", 5, "--in-chans", 1)
    train, val, info = loaders(*flags)
    assert info.class_names[0] == "T-shirt/top"
    assert info.input_size == (1, 28, 28)
    assert (train.padding, train.hflip, len(train)) == (2, 0.5, 4)
    expected = torch.from_numpy(pixels[:5, None] / 127.5 - 1).float()
    torch.testing.assert_close(next(iter(val))[0], expected)


MISTAKES = {
    "unknown name": (["--dataset", "cifr10"], ValueError, "'cifr10'.*nearest is 'cifar10'"),
    "not downloaded": (
        ["--dataset", "cifar10", "--data-dir", "{dir}/none"],
        FileNotFoundError,
        "CIFAR-10 was not found in .*none; pass --download",
    ),
    "svhn not downloaded": (
        ["--dataset", "svhn", "--data-dir", "{dir}"],
        FileNotFoundError,
        "SVHN was not found in .*; pass --download",
    ),
    "no directory": (
        ["--dataset", "folder", "--data-dir", "{dir}/tran"],
        FileNotFoundError,
        "tran is not a directory.*nearest name there is 'train'",
    ),
    "no such split": (
        ["--dataset", "folder", "--data-dir", "{dir}", "--val-split", "tests"],
        FileNotFoundError,
        "no tests split.*nearest name there is 'test'",
    ),
    "samples of a folder": (
        ["--dataset", "folder", "--data-dir", "{dir}", "--train-num-samples", 5],
        ValueError,
        "--train-num-samples is for a stream or pasted scenes; of folder --train-subset takes some",
    ),
    "classes of the digits": (["--class-map", "{dir}"], ValueError, "--class-map is for folders"),
    "columns of a folder": (
        ["--dataset", "folder", "--data-dir", "{dir}", "--target-key", "label"],
        ValueError,
        "--target-key is for data sets with columns; folder has none",
    ),
    "unknown torchvision name": (
        ["--dataset", "torch/mnit", "--data-dir", "{dir}"],
        ValueError,
        "Unknown torchvision dataset mnit.*'torch/mnist'",
    ),
    "streamed augmentation in memory": (
        ["--in-memory", "on", "--color-jitter", 0.4],
        ValueError,
        "--color-jitter needs streamed images",
    ),
    "too few classes": (["--num-classes", 9], ValueError, "fewer than the 10 classes"),
    "interpolation": (["--interpolation", "bilinea"], ValueError, "nearest is 'bilinear'"),
    "channels": (["--input-size", 2, 8, 8], ValueError, "2 channels.*expected 1"),
    "subset": (
        ["--train-subset", 2000],
        ValueError,
        "--train-subset 2000 of 1437 training images; expected 1 to 1437",
    ),
    "batch": (["--batch-size", 2000], ValueError, "1437 images.*--batch-size 1437 or less"),
}


@pytest.mark.parametrize(("flags", "kind", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_sentence(folder, flags, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        loaders(*(str(flag).format(dir=folder) for flag in flags))
    assert "\n" not in str(caught.value)


def test_folder_without_a_test_split(tmp_path):
    write_images(tmp_path / "train", count=1)
    with pytest.raises(FileNotFoundError, match=r"has no test split; expected .*val or .*or test"):
        loaders("--dataset", "folder", "--data-dir", tmp_path)


def test_split_without_images(tmp_path):
    write_images(tmp_path / "train", count=1)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="val could not be opened: Found 0 images"):
        loaders("--dataset", "folder", "--data-dir", tmp_path)


def test_test_split_with_another_class(tmp_path):
    write_images(tmp_path / "train", count=1)
    write_images(tmp_path / "val", count=1, classes=("cats",))
    with pytest.raises(ValueError, match=r"class 'cats'.*nearest is 'cat'"):
        loaders("--dataset", "folder", "--data-dir", tmp_path)
