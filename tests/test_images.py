"""Images reach the network as they look, or loading stops with the name of the file."""

import os
import re
import struct
import tarfile
import zlib
from itertools import product
from multiprocessing import active_children

import numpy as np
import pytest
import recipe
import torch
from PIL import Image
from small_data import loaders, write_images
from timm.data import IterableImageDataset
from torchvision import transforms as tv

from man_zoo.commands.evaluate import evaluate_weights, parse_args
from man_zoo.console import UserError
from man_zoo.data import StreamLoader

SIZE = 8


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, count=4, size=SIZE)
    return tmp_path


def flags(folder, memory="auto", workers=0, dataset="folder", **more):
    words = {"data-dir": folder, "in-memory": memory, "batch-size": 2, "workers": workers, **more}
    return ["--dataset", dataset, *(w for key, value in words.items() for w in (f"--{key}", value))]


def pixels(folder, channels=3, memory="on"):
    """The first evaluation image as loaded, (C, H, W) from 0 to 255."""
    _, val, _ = loaders(*flags(folder, memory), "--in-chans", channels, "--mean", 0, "--std", 1)
    return next(iter(val))[0][0] * 255


def read_everything(*words):
    for loader in loaders(*words)[:2]:
        list(loader)


def complaint(read, *words):
    """The sentence in which reading ends."""
    with pytest.raises(ValueError, match=r".") as caught:
        read(*words)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


# ------------------------------------------------------------------------------------- what is seen

RAMP = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) * 4
EVERY_WAY = list(product((1, 3), ("on", "off")))


@pytest.mark.parametrize(("channels", "memory"), EVERY_WAY)
def test_sixteen_bits_are_scaled_to_eight(folder, channels, memory):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    deep.save(folder / "val" / "cat" / "0.png")
    expected = torch.from_numpy(RAMP).float().expand(channels, -1, -1)
    torch.testing.assert_close(pixels(folder, channels, memory), expected)


def test_sixteen_bits_keep_their_extremes_and_round(folder):
    deep = np.full((SIZE, SIZE), 65535, np.uint16)
    deep[0, :3] = 0, 128, 129
    Image.fromarray(deep).save(folder / "val" / "cat" / "0.png")
    seen = pixels(folder, 1).round()
    assert seen[0, 0, :4].tolist() == [0, 0, 1, 255]


def transparent(mode):
    """Black ink, left half of the image; the hidden colour of the other half is black too."""
    ink = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (0, 0, SIZE // 2, SIZE))
    if mode == "P":
        image = Image.new("P", (SIZE, SIZE), 1)
        image.putpalette([0, 0, 0] * 256)
        image.paste(0, (0, 0, SIZE // 2, SIZE))
        image.info["transparency"] = 1
        return image
    return ink.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("channels", "memory"), EVERY_WAY)
def test_what_is_transparent_shows_white(folder, mode, channels, memory):
    transparent(mode).save(folder / "val" / "cat" / "0.png")
    seen = pixels(folder, channels, memory).round()
    assert (seen[..., : SIZE // 2] == 0).all()
    assert (seen[..., SIZE // 2 :] == 255).all()


def test_half_transparent_ink_is_half_as_strong(folder):
    Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 128)).save(folder / "val" / "cat" / "0.png")
    assert pixels(folder)[:, 0, 0].round().tolist() == [255, 127, 127]


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "L", "LA", "CMYK"])
def test_opaque_images_look_as_they_do(folder, mode):
    image = Image.fromarray(RAMP).convert(mode)
    image.save(folder / "val" / "cat" / "0.png", format="JPEG" if mode == "CMYK" else "PNG")
    with Image.open(folder / "val" / "cat" / "0.png") as saved:
        expected = tv.functional.pil_to_tensor(saved.convert("RGB")).float()
    torch.testing.assert_close(pixels(folder), expected)


def test_sixteen_bits_in_a_stream():
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    loader = StreamLoader(IterableImageDataset(None, reader=[(deep, 1)]), 1, tv.PILToTensor())
    images, targets = next(iter(loader))
    assert targets.tolist() == [1]
    assert torch.equal(images[0], torch.from_numpy(RAMP).float().expand(3, -1, -1))


# ------------------------------------------------------------------------------------ what is not


def bomb(path):
    """30000 x 30000 pixels, says the header of a file of 100 bytes."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1000])


UNUSABLE = {
    "text": (lambda path: path.write_text("no image"), "no image that Pillow knows"),
    "empty": (lambda path: path.write_bytes(b""), "no image that Pillow knows"),
    "truncated": (truncated, "truncated"),
    "bomb": (bomb, "exceeds limit"),
    "float": (
        lambda path: Image.fromarray(RAMP / np.float32(255)).save(path, format="TIFF"),
        "expected 8 or 16 bits a channel",
    ),
    "32 bits": (
        lambda path: Image.fromarray(RAMP.astype(np.int32) << 20).save(path, format="TIFF"),
        "expected 8 or 16 bits a channel",
    ),
}


@pytest.mark.parametrize(("write", "reason"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize(("memory", "workers"), [("on", 0), ("off", 0), ("off", 2)])
def test_a_file_that_cannot_be_used_is_named(folder, write, reason, memory, workers):
    path = folder / "train" / "dog" / "3.png"
    write(path)
    sentence = complaint(read_everything, *flags(folder, memory, workers))
    assert sentence.startswith(f"{path} cannot be used: ")
    assert reason in sentence
    assert not active_children()  # the loader's workers have gone


def test_the_first_file_is_named_too(folder):
    path = folder / "train" / "cat" / "0.png"
    truncated(path)
    sentence = complaint(loaders, *flags(folder))
    assert str(path) in sentence
    assert "truncated" in sentence


def test_a_file_that_is_gone_is_named(folder):
    train, _, _ = loaders(*flags(folder, "off"))
    (folder / "train" / "cat" / "1.png").unlink()
    sentence = complaint(list, train)
    assert "1.png" in sentence
    assert "No such file" in sentence


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_in_a_tar_is_named(folder, workers):
    truncated(folder / "train" / "dog" / "3.png")
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            tar.add(folder / split, arcname=".")
        (folder / split).rename(folder / f"{split}-files")
    sentence = complaint(read_everything, *flags(folder, "off", workers, dataset="tar"))
    assert "dog/3.png in " in sentence
    assert str(folder / "train.tar") in sentence
    assert "truncated" in sentence


def test_a_file_of_torchvision_is_named(folder):
    path = folder / "train" / "dog" / "3.png"
    truncated(path)
    sentence = complaint(read_everything, *flags(folder, "off", dataset="torch/image_folder"))
    assert str(path) in sentence
    assert "truncated" in sentence


def test_an_image_without_a_file_is_numbered():
    deep = [(Image.fromarray(RAMP / np.float32(255)), 0)]
    sentence = complaint(list, StreamLoader(deep, 1, tv.PILToTensor(), workers=1))
    assert "Image 0" in sentence
    assert "expected 8 or 16 bits a channel" in sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_breaks_off(workers):
    class Reader:
        def __iter__(self):
            yield Image.fromarray(RAMP), 0
            raise OSError("image file is truncated")

        def __len__(self):
            return 2

    broken = IterableImageDataset(None, reader=Reader())
    sentence = complaint(list, StreamLoader(broken, 1, tv.PILToTensor(), workers=workers))
    assert sentence == "The stream cannot be used: image file is truncated."


def test_an_image_without_a_label():
    unlabelled = [(Image.fromarray(RAMP), None)]
    sentence = complaint(list, StreamLoader(unlabelled, 1, tv.PILToTensor()))
    assert sentence == "Image 0 cannot be used: it has no label."


# ----------------------------------------------------------------------------------- odd folders


def test_a_pipe_among_the_images(folder):
    path = folder / "train" / "cat" / "pipe.png"
    os.mkfifo(path)
    sentence = complaint(loaders, *flags(folder))
    assert str(path) in sentence
    assert "expected a file" in sentence


def test_a_pipe_of_another_name_is_left_alone(folder):
    os.mkfifo(folder / "train" / "cat" / "pipe")
    assert loaders(*flags(folder))[2].train_count == 8


def test_a_link_to_nothing(folder):
    path = folder / "train" / "cat" / "gone.png"
    path.symlink_to(folder / "gone.png")
    sentence = complaint(loaders, *flags(folder))
    assert str(path) in sentence
    assert "expected a file" in sentence


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_above(folder, target):
    link = folder / "train" / "cat" / "again"
    link.symlink_to(target)
    sentence = complaint(loaders, *flags(folder))
    assert "again" in sentence
    assert "a folder that it lies in" in sentence


def test_links_that_lead_round_in_a_ring(folder):
    (folder / "train" / "cat" / "a").symlink_to(folder / "train" / "dog")
    (folder / "train" / "dog" / "b").symlink_to(folder / "train" / "cat")
    sentence = complaint(loaders, *flags(folder))
    assert "/train/" in sentence
    assert "a folder that it lies in" in sentence


def test_a_linked_class_is_a_class(folder):
    elsewhere = folder / "elsewhere"
    write_images(elsewhere, classes=("fox",), count=3, size=SIZE)
    (folder / "train" / "fox").symlink_to(elsewhere / "fox")
    assert loaders(*flags(folder))[2].train_count == 11


# ------------------------------------------------------------------------------------- in commands


def streamed_flags(folder):
    return recipe.flags(folder, folder, "--in-memory", "off", "--workers", "1")


@pytest.mark.parametrize("place", ["train/class2/23.png", "test/class0/9.png"])
def test_training_ends_with_the_name_of_the_file(tmp_path, place):
    truncated(recipe.write_images(tmp_path) / place)
    with pytest.raises(UserError, match=rf"^.*{place} cannot be used: .*truncated"):
        recipe.train_here(*streamed_flags(tmp_path))


def test_evaluation_ends_with_the_name_of_the_file(tmp_path):
    truncated(recipe.write_images(tmp_path) / "test" / "class0" / "9.png")
    words = ["resnet20_man_dgl_k4.digits", *flags(tmp_path, "off"), "--val-split", "test"]
    with pytest.raises(UserError, match=r"^.*9.png cannot be used: .*truncated"):
        evaluate_weights(parse_args(list(map(str, words))))


@pytest.mark.slow
def test_the_process_that_meets_the_file_names_it(tmp_path):
    truncated(recipe.write_images(tmp_path) / "test" / "class2" / "8.png")  # the second's share
    launch = recipe.processes(2)
    script = str(recipe.ROOT / "recipes" / "train.py")
    failed = recipe.python(*launch, script, *streamed_flags(tmp_path), check=False)
    assert failed.returncode
    assert len(re.findall(r"^train.py: .*8.png cannot be used", failed.stderr, re.M)) == 1
