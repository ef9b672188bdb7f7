"""Laws of the sources that need nothing but files: digits, arrays, folder, memory."""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import arrays, folders
from ddpm_jax.data.base import gather, in_memory
from ddpm_jax.data.contents import contents_of, passed_over


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def assert_is_source(source):
    height, width, channels = source.image_shape
    images, labels = gather(source, np.arange(len(source)))
    assert images.shape == (len(source), height, width, channels)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert labels.min() >= 0 and labels.max() < max(source.num_classes, 1)
    image, label = source[len(source) - 1]
    np.testing.assert_array_equal(image, images[-1], strict=True)
    assert label == labels[-1] and isinstance(label, int)


class Records:
    """A source with nothing but the interface: image i is full of i."""

    image_shape = (4, 6, 3)
    num_classes = 5

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full(self.image_shape, index % 256, np.uint8), index % 5


def test_digits_splits_are_a_partition():
    train, test, both = map(arrays.digits, ["train", "test", "all"])
    assert (len(train), len(test), len(both)) == (1498, 299, 1797)
    for source in (train, test, both):
        assert_is_source(source)
        assert source.image_shape == (8, 8, 1) and source.num_classes == 10
    rows = np.concatenate([train.images, test.images]).reshape(-1, 64)
    np.testing.assert_array_equal(
        np.sort(rows, axis=0), np.sort(both.images.reshape(-1, 64), axis=0)
    )
    # Ink 0..16 becomes 0..255; every class is in the test split.
    assert set(np.unique(rows)) == {round(ink * 255 / 16) for ink in range(17)}
    assert set(test.labels) == set(range(10))
    with pytest.raises(ValueError, match="no split 'validation': give train"):
        arrays.digits("validation")


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_arrays_gives_what_was_saved(tmp_path, grey, labelled):
    images = noise(7, 6, 5) if grey else noise(7, 6, 5, 3)
    labels = {"labels": np.array([3, 0, 1, 2, 3, 0, 1])} if labelled else {}
    np.savez(tmp_path / "a.npz", images=images, **labels)
    source = arrays.arrays(tmp_path / "a.npz")
    assert_is_source(source)
    assert source.num_classes == (4 if labelled else 0)
    np.testing.assert_array_equal(source.images.squeeze(), images)
    fitted = arrays.arrays(str(tmp_path / "a.npz"), image_size=[3, 4])
    assert_is_source(fitted)
    assert fitted.image_shape == (3, 4, 1 if grey else 3)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"pictures": noise(2, 4, 4, 3)}, "holds ['pictures'] but not `images`"),
        ({"images": np.zeros((2, 4, 4, 3))}, "is float64 [2, 4, 4, 3]: store uint8"),
        ({"images": noise(4, 4)}, "is uint8 [4, 4]: store uint8"),
        ({"images": noise(0, 4, 4, 3)}, "is uint8 [0, 4, 4, 3]: store uint8"),
        ({"images": noise(2, 4, 4), "labels": np.zeros(3, int)}, "is int64 [3]"),
        ({"images": noise(2, 4, 4), "labels": np.zeros(2)}, "is float64 [2]"),
        ({"images": noise(2, 4, 4, 3) / 255}, "(255 * images).round()"),
        ({"images": noise(2, 4, 4, 3) / 127.5 - 1}, "(127.5 * images + 127.5)"),
        ({"images": noise(2, 4, 4, 3) / 1.0}, "images.round().astype"),
        ({"images": noise(2, 4, 4).astype(np.uint16)}, "images // 257"),
        ({"images": noise(2, 4, 4, 4)}, "4 channels are no picture"),
        ({"images": noise(2, 4, 4, 2)}, "2 channels are no picture"),
        ({"images": noise(2, 3, 8, 8)}, "its channels come first"),
        ({"images": noise(8, 8, 3)}, "is it one picture?"),
        ({"images": noise(2, 4, 4), "labels": np.ones((2, 3))}, "is float64 [2, 3]"),
        ({"images": noise(2, 4, 4), "labels": np.array([0, -1])}, "goes below 0"),
        ({"images": np.array([None])}, "no readable .npz of arrays"),
    ],
)
def test_arrays_says_what_is_wrong(tmp_path, stored, message):
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(ValueError, match=re.escape(message)):
        arrays.arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [lambda x: x[:, None], lambda x: np.eye(4)[x]])
def test_labels_may_be_a_column_or_one_hot(tmp_path, shape):
    labels = np.array([3, 0, 1, 2, 3])
    np.savez(tmp_path / "a.npz", images=noise(5, 4, 4), labels=shape(labels))
    source = arrays.arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(source.labels, labels)
    assert source.num_classes == 4


def test_arrays_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.npz"):
        arrays.arrays(tmp_path / "none.npz")
    np.save(tmp_path / "plain.npy", noise(2, 4, 4))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("images")
    np.savez(tmp_path / "whole.npz", images=noise(9, 8, 8))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:400])
    for name in ["plain.npy", "empty.npz", "text.npz", "half.npz"]:
        with pytest.raises(ValueError, match=f"{name} is no readable .npz"):
            arrays.arrays(tmp_path / name)


def test_folder_classes_are_the_sorted_subfolders_at_any_depth(tmp_path):
    names = ["b/2.png", "a/x/9.JPEG", "c/1.webp", "a/1.bmp", "c/3.gif", "a/0.jpg"]
    for i, name in enumerate(names):
        save(tmp_path / name, np.full((8, 8, 3), 20 * i, np.uint8))
    save(tmp_path / "a/.hidden.png", noise(8, 8))
    save(tmp_path / ".thumbs/1.png", noise(8, 8))
    (tmp_path / "a/notes.txt").write_text("no image")
    source = folders.folder(tmp_path, 8)
    assert_is_source(source)
    assert len(source) == 6 and source.num_classes == 3
    images, labels = gather(source, np.arange(6))
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 2, 2])
    # In the order of the names: a/0.jpg, a/1.bmp, a/x/9.JPEG, b/2.png, c/1.webp, ...
    np.testing.assert_allclose(images[:, 4, 4, 0], [100, 60, 20, 0, 40, 80], atol=3)


def test_classes_are_numbered_as_people_count(tmp_path):
    for name in ("10", "9", "2", "b", "a1b", "a01"):
        save(tmp_path / name / "0.png", noise(8, 8))
    found = contents_of(folders.folder(tmp_path, 8))
    assert found.classes == ["2", "9", "10", "a01", "a1b", "b"]
    assert str(found) == "6 images, 6 classes: 2, 9, 10, a01, a1b, b"


@pytest.mark.parametrize("left", [(), ("notes.txt", "a.heic")])
def test_a_class_without_images_moves_no_other(tmp_path, left):
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.png", noise(8, 8))
    (tmp_path / "bird").mkdir()
    for name in left:
        (tmp_path / "bird" / name).touch()
    with pytest.raises(ValueError, match="the class 'bird' of .* has no image"):
        folders.folder(tmp_path, 8)


def test_what_is_not_read_is_counted_by_kind(tmp_path):
    for suffix in ("jpg", "jpe", "jfif", "tiff", "tif", "tga", "ppm", "webp"):
        save(tmp_path / f"0.{suffix}", noise(8, 8, 3))
    for name in ("1.heic", "2.HEIC", "notes.txt", "Makefile", ".hidden"):
        (tmp_path / name).touch()
    os.symlink(tmp_path / "nowhere.png", tmp_path / "broken.png")
    source = folders.folder(tmp_path, 8)
    assert len(source) == 8
    said = passed_over(source)
    assert said.startswith("5 files passed over: 2 .heic, ")
    assert all(each in said for each in ("1 .txt", "1 no ending", "1 .png"))


def test_links_are_followed_but_nothing_is_read_twice(tmp_path):
    place, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for path in (place / "cat", place / "cat" / "more", elsewhere):
        save(path / "0.png", noise(8, 8))
    os.symlink(elsewhere, place / "dog")
    links = {"cat/self": "../cat", "cat/more/up": place, "cat/again": elsewhere}
    for link, target in links.items():
        os.symlink(target, place / link)
    source = folders.folder(place, 8)
    assert source.names == ["cat/0.png", "cat/more/0.png", "dog/0.png"]
    assert source.passed_over == {"linked again": 3}


def test_transparent_pictures_lie_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    save(tmp_path / "0.png", pixels)
    image, _ = folders.folder(tmp_path, 8)[0]
    assert image[:4].max() == 0 and image[4:].min() == 255


def test_contents_change_with_files_and_not_with_places(tmp_path):
    for name in ("a/0.png", "b/1.png", "b/2.png"):
        save(tmp_path / "here" / name, noise(8, 8))
    there = shutil.copytree(tmp_path / "here", tmp_path / "there")
    before = contents_of(folders.folder(tmp_path / "here", 8))
    read = lambda: contents_of(folders.folder(there, 8)).changed_from(before)
    assert read() is None
    (there / "b" / "1.png").rename(there / "b" / "3.png")
    assert read() == "some images are others, or lie under other names"
    (there / "b" / "3.png").unlink()
    assert read() == "there are 2 images, and were 3"
    shutil.rmtree(there / "a")
    assert read() == "class 0 is b, and was a"
    (there / "b").rename(there / "a")
    assert read() == "class 1 is none, and was b"


def test_contents_of_arrays_are_their_pixels_and_labels():
    source = arrays.digits()
    found = contents_of(source)
    assert str(found).startswith("1,498 images, 10 classes: 0, 1, 2")
    for name in ("images", "labels"):
        changed = getattr(source, name).copy()
        changed[-1] = 1 - changed[-1] % 2
        other = contents_of(dataclasses.replace(source, **{name: changed}))
        assert other.changed_from(found) == (
            "some images are others, or lie under other names"
        )


def test_folder_without_subfolders_has_no_classes(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((8, 8), 50 * i, np.uint8))
    source = folders.folder(str(tmp_path), 8, channels=1)
    assert_is_source(source)
    assert source.num_classes == 0 and source.image_shape == (8, 8, 1)
    assert [source[i][0].max() for i in range(3)] == [0, 50, 100]


def test_folder_converts_every_mode_and_crops_the_centre(tmp_path):
    # Red | green | blue thirds: the centre square is green alone.
    image = np.repeat(np.eye(3, dtype=np.uint8) * 255, 16, axis=0)[None].repeat(16, 0)
    for mode in ["RGB", "RGBA", "P", "CMYK", "L", "1"]:
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(image).convert(mode).save(tmp_path / f"{mode}.{suffix}")
    source = folders.folder(tmp_path, (4, 4))
    assert_is_source(source)
    for index, name in enumerate(source.names):
        pixel = source[index][0][2, 2].astype(int)
        if name in ("L.png", "1.png"):
            assert pixel[0] == pixel[1] == pixel[2]
        else:
            np.testing.assert_allclose(pixel, [0, 255, 0], atol=40, err_msg=name)
    assert folders.folder(tmp_path, 4, channels=1).image_shape == (4, 4, 1)


def test_folder_turns_images_as_exif_says(tmp_path):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    stored = Image.fromarray(np.rot90(upright).copy())
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image, _ = folders.folder(tmp_path, 16)[0]
    np.testing.assert_allclose(image.astype(int), upright, atol=20)


@pytest.fixture
def corrupt_folder(tmp_path):
    """Five images in classes a and b; half a PNG, half a JPEG, text, and 16 bits."""
    for name in ["a/0.png", "b/1.png", "b/2.jpg", "b/3.png", "b/4.png"]:
        save(tmp_path / name, noise(32, 32, 3))
    for name in ["a/half.png", "b/half.jpg"]:
        save(tmp_path / name, noise(32, 32, 3))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b/text.png").write_text("no image")
    save(tmp_path / "b/deep.png", noise(8, 8).astype(np.uint16) * 256)
    return tmp_path


def test_folder_refuses_a_corrupt_image_by_name(corrupt_folder):
    with pytest.raises(ValueError, match="cannot read .*half.png .*on_error='skip'"):
        folders.folder(corrupt_folder, 8)


def test_folder_leaves_corrupt_images_out_with_one_warning(corrupt_folder):
    with pytest.warns(UserWarning, match="left out 4 unreadable of 9") as record:
        source = folders.folder(corrupt_folder, 8, on_error="skip")
    assert len(record) == 1
    for name in ["half.png", "half.jpg", "text.png", "deep.png (more than 8 bits"]:
        assert name in str(record[0].message)
    assert_is_source(source)
    assert len(source) == 5 and source.num_classes == 2


def test_folder_keeps_its_class_numbers_where_a_class_is_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/text.png").write_text("no image")
    with pytest.raises(ValueError, match="none of the 1 images"):
        folders.folder(tmp_path, 8, on_error="skip")
    save(tmp_path / "b/1.png", noise(8, 8))
    with pytest.warns(UserWarning, match="text.png"):
        source = folders.folder(tmp_path, 8, on_error="skip")
    assert source[0][1] == 1 and source.num_classes == 2


def test_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="on_error is 'ignore': give 'raise' or"):
        folders.folder(tmp_path, 8, on_error="ignore")
    with pytest.raises(ValueError, match="channels is 4"):
        folders.folder(tmp_path, 8, channels=4)
    with pytest.raises(ValueError, match="image_size is 0"):
        folders.folder(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match="there is no folder .*none"):
        folders.folder(tmp_path / "none", 8)
    with pytest.raises(FileNotFoundError, match="there is no image in"):
        folders.folder(tmp_path, 8)
    save(tmp_path / "0.png", noise(8, 8))
    save(tmp_path / "a/0.png", noise(8, 8))
    with pytest.raises(
        ValueError, match=r"both directly \(0.png\) and in sub-folders \(a\)"
    ):
        folders.folder(tmp_path, 8)


def test_in_memory_equals_its_source_and_keeps_to_the_limit(capsys):
    records = Records(600)
    held = in_memory(records)
    assert_is_source(held)
    assert held.image_shape == (4, 6, 3) and held.num_classes == 5
    for index in range(len(records)):
        np.testing.assert_array_equal(held[index][0], records[index][0])
        assert held[index][1] == records[index][1]
    size_gb = 600 * 4 * 6 * 3 / 1e9
    assert in_memory(records, max_memory_gb=0.99 * size_gb) is records
    assert in_memory(records, max_memory_gb=size_gb) is not records
    assert in_memory(held) is held
    assert capsys.readouterr() == ("", ""), "no progress bar without a terminal"


def test_in_memory_raises_what_the_source_raises():
    class Broken(Records):
        def __getitem__(self, index):
            raise OSError(f"record {index}")

    with pytest.raises(OSError, match="record 0"):
        in_memory(Broken(5))


def test_gather_gives_fresh_arrays():
    for source in (Records(9), in_memory(Records(9))):
        images, labels = gather(source, np.array([2, 8, 2]))
        np.testing.assert_array_equal(images[:, 0, 0, 0], [2, 8, 2])
        np.testing.assert_array_equal(labels, [2, 3, 2])
        images[:] = 77
        assert source[2][0].max() == 2


def test_importing_the_room_is_light():
    code = (
        "import sys; from ddpm_jax.data import arrays, batches, images;"
        "heavy = {'jax', 'flax', 'tensorflow', 'tensorflow_datasets'};"
        "heavy &= set(sys.modules); assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_digits_are_those_of_scikit_learn():
    shades = np.rint(arrays.digits("all").images / (255 / 16)).astype(np.uint8)
    labels = arrays.digits("all").labels.astype(np.uint8)
    # Of load_digits() in scikit-learn 1.9, its images and labels as uint8.
    expected = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    found = hashlib.sha256(shades.tobytes() + labels.tobytes()).hexdigest()
    assert found == expected
