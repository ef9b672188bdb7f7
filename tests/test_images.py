"""Laws of images as arrays: scaling, fitting, tiling, saving."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import folders, images
from ddpm_jax.data.base import gather

EVERY_PIXEL = np.arange(256, dtype=np.uint8)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_to_float_spans_the_range_and_to_uint8_inverts_it():
    scaled = images.to_float(EVERY_PIXEL)
    assert scaled.dtype == np.float32
    assert scaled[0] == -1 and scaled[-1] == 1
    np.testing.assert_allclose(np.diff(scaled), 2 / 255, rtol=1e-4)
    np.testing.assert_array_equal(images.to_uint8(scaled), EVERY_PIXEL)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_to_float_is_the_same_in_jax(wrap):
    scaled = wrap(images.to_float)(jnp.asarray(EVERY_PIXEL))
    assert isinstance(scaled, jax.Array) and scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, images.to_float(EVERY_PIXEL), atol=1e-7)


def test_to_float_refuses_what_is_scaled_already():
    with pytest.raises(ValueError, match="float32, not uint8"):
        images.to_float(np.zeros(3, np.float32))


def test_to_uint8_clips_and_rounds_to_nearest():
    x = np.array([-7.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 9.0])
    np.testing.assert_array_equal(images.to_uint8(x), [0, 0, 0, 1, 255, 255])
    assert images.to_uint8(jnp.zeros(2, jnp.bfloat16)).dtype == np.uint8


def test_pixels_are_the_same_wherever_they_are_made():
    """What lies between two pixels, and some roundings around it; as jitted, too."""
    half = (np.arange(256, dtype=np.float32) + np.float32(0.5)) / np.float32(127.5) - 1
    edges = [images.to_float(EVERY_PIXEL.ravel()), half, [-2, -1, 0, 1, 2]]
    x = np.concatenate(edges).astype(np.float32)
    for _ in range(4):
        x = np.concatenate([x, np.nextafter(x, -2), np.nextafter(x, 2)])
    by_float = np.rint(127.5 * (np.clip(x, -1, 1) + 1)).astype(np.uint8)
    assert isinstance(images.to_uint8(x), np.ndarray)
    for made in (images.to_uint8(x), images.to_uint8(jnp.array(x))):
        np.testing.assert_array_equal(made, by_float)
    np.testing.assert_array_equal(jax.jit(images.to_uint8)(x), by_float)


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40), (10, 30), (5, 5)])
@pytest.mark.parametrize("image_size", [12, (8, 16), [17, 3]])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resize_and_crop_gives_the_size_and_keeps_a_plain_colour(
    shape, image_size, channels
):
    colour = np.arange(7, 7 + channels, dtype=np.uint8)
    image = np.broadcast_to(colour, (*shape, channels))
    fitted = images.resize_and_crop(image, image_size)
    assert fitted.shape == (*images.height_width(image_size), channels)
    np.testing.assert_array_equal(fitted, np.broadcast_to(colour, fitted.shape))


def test_resize_and_crop_is_resize_then_centre_crop():
    image = noise(40, 60, 3)
    whole = np.asarray(Image.fromarray(image).resize((30, 20), Image.LANCZOS))
    np.testing.assert_array_equal(
        images.resize_and_crop(image, 20), whole[:, 5:25], strict=True
    )
    np.testing.assert_array_equal(images.resize_and_crop(image, (40, 60)), image)
    np.testing.assert_array_equal(images.resize_and_crop(image, 40), image[:, 10:50])


@pytest.mark.parametrize("image_size", [0, -4, 2.5, (1, 2, 3), "8", (8, 0), None])
def test_height_width_refuses_what_is_no_size(image_size):
    with pytest.raises(ValueError, match="image_size is"):
        images.height_width(image_size)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_image_at_its_place(channels):
    tiles = noise(5, 8, 6, channels)
    picture = images.grid(tiles, columns=3, scale=2, pad=1)
    assert picture.shape == (2 * (16 + 1) + 1, 3 * (12 + 1) + 1, channels)
    for i, tile in enumerate(tiles):
        top, left = (i // 3) * 17 + 1, (i % 3) * 13 + 1
        shown = picture[top : top + 16, left : left + 12]
        np.testing.assert_array_equal(shown[::2, ::2], tile)
        np.testing.assert_array_equal(shown[1::2, 1::2], tile)
    assert (picture[::17] == 128).all() and (picture[:, ::13] == 128).all()
    assert (picture[18:, 27:] == 128).all()


def test_grid_is_near_square_with_visible_tiles_by_default():
    assert images.grid(noise(16, 8, 8, 1), pad=0).shape == (4 * 64, 4 * 64, 1)
    assert images.grid(noise(5, 32, 32, 3), pad=0).shape == (2 * 64, 3 * 64, 3)
    assert images.grid(noise(1, 100, 70, 3), pad=0).shape == (100, 70, 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 8, 8, 3)), noise(8, 8, 3), noise(0, 8, 8, 3)]
)
def test_grid_refuses_other_arrays(bad):
    with pytest.raises(ValueError, match="a grid needs uint8"):
        images.grid(bad)


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7, 1), (9, 7)])
def test_save_png_keeps_the_pixels_and_leaves_nothing_else(tmp_path, shape):
    picture = noise(*shape)
    path = tmp_path / "new" / "folder" / "picture.png"
    images.save_png(path, np.zeros_like(picture))
    images.save_png(path, picture)
    stored = np.asarray(Image.open(path))
    np.testing.assert_array_equal(stored, picture.reshape(stored.shape))
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_a_failed_save_png_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    images.save_png(path, noise(4, 4))
    before = path.read_bytes()

    def write_half(self, data):
        self.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="disk full"):
        images.save_png(path, noise(4, 4, seed=1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), noise(4, 4, 2), noise(4)])
def test_save_png_refuses_other_arrays(tmp_path, bad):
    with pytest.raises(ValueError, match="a PNG needs uint8"):
        images.save_png(tmp_path / "picture.png", bad)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_is_the_same_in_a_file_and_in_memory(tmp_path, channels):
    frames = np.stack([np.full((9, 7, channels), shade, np.uint8) for shade in (0, 90)])
    images.save_gif(tmp_path / "steps.gif", frames, seconds=2.0)
    data = images.to_gif(frames, seconds=2.0)
    assert (tmp_path / "steps.gif").read_bytes() == data
    with Image.open(io.BytesIO(data)) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (2, 0)
        assert animation.info["duration"] == 750
        animation.seek(1)
        assert animation.info["duration"] == 500  # a quarter, for the last
        assert np.unique(np.asarray(animation.convert("L"))) == [90]


@pytest.mark.parametrize("labels", [None, [2, 0, 2, 1, 0]])
def test_save_folder_is_read_back_by_the_source_folder(tmp_path, labels):
    saved = noise(5, 8, 8, 3)
    images.save_folder(tmp_path, saved, labels)
    source = folders.folder(tmp_path, 8)
    assert source.num_classes == (0 if labels is None else 3)
    read, read_labels = gather(source, np.arange(5))
    order = np.argsort(labels or [0] * 5, kind="stable")
    np.testing.assert_array_equal(read, saved[order])
    np.testing.assert_array_equal(read_labels, np.sort(labels or [0] * 5))
    assert (tmp_path / ("000003.png" if labels is None else "0001/000003.png")).exists()


def test_save_folder_wants_a_label_for_each_image(tmp_path):
    with pytest.raises(ValueError, match="1 labels for 2 images"):
        images.save_folder(tmp_path, noise(2, 4, 4, 3), [0])
    assert not list(tmp_path.iterdir())
