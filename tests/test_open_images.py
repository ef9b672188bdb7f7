"""Images as they are, in a folder or a file, and their labels."""

import errno
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from tiny import tiny

from ddpm_jax.data import arrays as sources
from ddpm_jax.data import images
from ddpm_jax.data.base import labels_of
from ddpm_jax.data.folders import image_shape_of
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import dataset


def write(path, *shape, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.mark.parametrize("shape, expected", [
    ((6, 9), (6, 9, 1)), ((6, 9, 3), (6, 9, 3)), ((7, 5, 4), (7, 5, 3))
])  # fmt: skip
def test_a_folder_of_images_as_they_are(tmp_path, shape, expected):
    pixels = write(tmp_path / "a.png", *shape)
    write(tmp_path / "b.png", *shape)
    (tmp_path / "notes.txt").write_text("no image")
    source = dataset.open_images(str(tmp_path))
    assert source.image_shape == expected and len(source) == 2
    image, label = source[0]
    pixels = pixels.reshape(*shape[:2], -1)
    if shape[-1] == 4:  # on white, to rounding
        opacity = pixels[..., 3:] / 255
        pixels = pixels[..., :3] * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(image, pixels, atol=0.51)
    assert source.num_classes == label == 0


def test_black_and_white_and_palettes(tmp_path):
    write(tmp_path / "1" / "a.png", 4, 4, mode="1")
    write(tmp_path / "P" / "a.png", 4, 4, 3, mode="P")
    shapes = [dataset.open_images(str(tmp_path / x)).image_shape for x in "1P"]
    assert shapes == [(4, 4, 1), (4, 4, 3)]


def test_images_that_are_to_be_turned_keep_all_their_pixels(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    source = dataset.open_images(str(tmp_path))
    assert source.image_shape == (6, 4, 1)
    np.testing.assert_array_equal(source[0][0][..., 0], np.rot90(pixels, -1))


def mixed_sizes(folder):
    write(folder / "x" / "a.png", 6, 9, 3)
    write(folder / "x" / "b.png", 6, 8, 3)


def corrupt(folder):
    write(folder / "a.png", 6, 9)
    (folder / "b.png").write_bytes(b"not an image")


def cut_off(folder):
    write(folder / "a.png", 60, 90)
    content = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])


def nothing(folder):
    (folder / ".hidden.png").write_bytes(b"")


def test_a_machine_that_fails_is_not_blamed_on_a_picture(tmp_path, monkeypatch):
    write(tmp_path / "a.png", 6, 9)
    failing = OSError(errno.EIO, "Input/output error")
    with monkeypatch.context() as broken:
        broken.setattr(Image, "open", Mock(side_effect=failing))
        with pytest.raises(OSError, match="Input/output error: .*a.png"):
            image_shape_of(tmp_path)
        broken.setattr(Image, "open", Mock(side_effect=MemoryError()))
        with pytest.raises(MemoryError):
            image_shape_of(tmp_path)


@pytest.mark.parametrize("fill, message", [
    (mixed_sizes, "of 2 sizes .1 of 6x9, 1 of 6x8.: bring all to one size"),
    (corrupt, "cannot read .*/b.png"),
    (cut_off, "cannot read .*/b.png"),
    (nothing, "there is no image in "),
])  # fmt: skip
def test_folders_that_cannot_be_scored(tmp_path, fill, message):
    fill(tmp_path)
    with pytest.raises(ConfigError, match=f"^--images: .*{message}"):
        dataset.open_images(str(tmp_path))


@pytest.mark.parametrize("arrays, message", [
    (None, "there is no file .*a.npz"),
    (b"PK", "a.npz is no readable .npz"),
    ({"mu": np.zeros(2)}, r"holds \['mu'\] but not `images`"),
    ({"images": np.zeros((2, 4, 4, 3))}, "is float64 .*: store uint8"),
])  # fmt: skip
def test_files_that_cannot_be_scored(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=f"^--images: .*{message}"):
        dataset.open_images(str(path))


def test_a_file_of_images_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 9), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.array([0, 2, 1, 0, 2]))
    source = dataset.open_images(str(tmp_path / "a.npz"))
    assert source.image_shape == (6, 9, 1) and source.num_classes == 3
    np.testing.assert_array_equal(source[3][0][..., 0], images[3])


def test_images_of_several_sizes_are_counted(tmp_path):
    for i, size in enumerate([8, 8, 8, 16]):
        images.save_png(tmp_path / f"{i}.png", np.zeros((size, 8, 3), np.uint8))
    with pytest.raises(
        ConfigError, match="of 2 sizes .3 of 8x8, 1 of 16x8.: bring all"
    ):
        dataset.open_images(tmp_path)
    (tmp_path / "3.png").unlink()
    images.save_png(tmp_path / "grey.png", np.zeros((8, 8, 1), np.uint8))
    assert dataset.open_images(tmp_path).image_shape == (8, 8, 3)


# Labels.


class Plain:
    """A source of nothing but items."""

    num_classes = 5

    def __getitem__(self, index):
        return np.zeros((2, 2, 1), np.uint8), index % 5


class Labelled(Plain):
    labels = [0, 3, 1, 2, 4]

    def __getitem__(self, index):
        raise AssertionError("no image is read")


def test_labels_of_any_source(tmp_path):
    for source, indices, expected in (
        (Plain(), np.array([7, 3, 3]), [2, 3, 3]),
        (Labelled(), np.array([4, 1, 1]), [4, 3, 3]),
        (Plain(), np.arange(0), []),
        (Labelled(), np.arange(0), []),
    ):
        found = labels_of(source, indices)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
    for name in ("cat/a.png", "dog/a.png", "dog/b.png"):
        write(tmp_path / name, 2, 2)
    folder = dataset.open_images(str(tmp_path))
    np.testing.assert_array_equal(labels_of(folder, np.array([2, 0])), [1, 0])


def test_folders_are_of_the_classes_that_they_are_named_by(tmp_path):
    pictures = sources.digits("test").images[:4]
    images.save_folder(tmp_path / "numbers", pictures, [3, 5, 3, 5])
    images.save_folder(tmp_path / "names", pictures, [1, 2, 1, 2])
    (tmp_path / "names" / "0001").rename(tmp_path / "names" / "dog")
    (tmp_path / "names" / "0002").rename(tmp_path / "names" / "bird")
    images.save_folder(tmp_path / "data", pictures[:3], [0, 1, 2])
    for old, new in (("0000", "ant"), ("0001", "bird"), ("0002", "dog")):
        (tmp_path / "data" / old).rename(tmp_path / "data" / new)
    data = {"name": "folder", "path": str(tmp_path / "data"), "batch_size": 2}
    data = dataset.make_dataset(tiny(f"data={data}", "network.num_classes=3"))
    read = lambda name, *given: dataset.open_images(tmp_path / name, *given).labels
    assert read("numbers") == read("numbers", data) == [3, 3, 5, 5]
    assert read("names", data) == [1, 1, 2, 2]  # bird before dog
    (tmp_path / "names" / "dog").rename(tmp_path / "names" / "wolf")
    with pytest.raises(ConfigError, match="have no class 'wolf'; they have ant, bird"):
        read("names", data)
