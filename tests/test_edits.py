"""Editing on the command line: what comes out of pictures that go in."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import call, random_params, tiny

from ddpm_jax import config, edits, experiment, runs, sample
from ddpm_jax.config import ConfigError
from ddpm_jax.data import images
from ddpm_jax.diffusion import editing

COLOURED = ("image_shape=8,8,3", "sampler={'name': 'ddim'}", "schedule.num_steps=100")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits") / "run"
    settings = tiny(*COLOURED)
    runs.write(folder, settings, random_params(experiment.build(settings)))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "p.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images.save_png(path, pixels)
    return path, pixels


@pytest.fixture
def draw(workdir, tmp_path):
    def run(*args, out="a.npz", num=8):
        call(sample, "--workdir", workdir, "--num", num, "--out", tmp_path / out, *args)
        return np.load(tmp_path / out)["images"] if out.endswith(".npz") else None

    return run


def as_float(pixels):
    return np.asarray(pixels, np.float32) / 127.5 - 1


def test_inpainting_keeps_the_rest_of_the_picture(draw, picture, tmp_path):
    path, pixels = picture
    mask = np.zeros((8, 8, 1), np.uint8)
    mask[2:5, 3:] = 255
    images.save_png(tmp_path / "mask.png", mask)
    given = ["--inpaint", path, "--mask", tmp_path / "mask.png"]
    drawn = [draw(*given, "--repaint", n) for n in (1, 2)]
    painted = mask[..., 0] > 0
    for each in drawn:
        np.testing.assert_array_equal(
            each[:, ~painted],
            np.broadcast_to(pixels[~painted], each[:, ~painted].shape),
        )
        assert (each[:, painted] != pixels[painted]).mean() > 0.5
    assert (drawn[0] != drawn[1]).any()


def test_strength_says_how_much_is_made_anew(draw, picture):
    path, pixels = picture
    near, far = (
        np.abs(
            as_float(draw("--init", path, "--strength", s)) - as_float(pixels)
        ).mean()
        for s in (0.02, 1)
    )
    assert near < 0.1 < far


def test_an_enlarged_picture_shrinks_to_what_was_given(draw, picture, tmp_path):
    _, pixels = picture
    small = pixels.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    images.save_png(tmp_path / "small.png", small)
    drawn = draw("--init", tmp_path / "small.png", "--upscale", 2)
    inside = (drawn > 0) & (drawn < 255)  # what leaves the range is clipped
    whole = inside.reshape(8, 4, 2, 4, 2, 3).all(axis=(2, 4))
    again = drawn.reshape(8, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert whole.mean() > 0.05
    np.testing.assert_allclose(again[whole], np.stack([small] * 8)[whole], atol=0.51)


def test_a_coloured_picture_is_as_grey_as_what_was_given(draw, picture):
    path, _ = picture
    grey = np.asarray(Image.open(path).convert("L"), np.float32)
    drawn = draw("--init", path, "--colourise")
    inside = ((drawn > 0) & (drawn < 255)).all(axis=-1)
    again = drawn @ np.array([0.299, 0.587, 0.114])
    assert inside.mean() > 0.05 and (drawn.std(axis=-1) > 1).any()
    np.testing.assert_allclose(again[inside], np.stack([grey] * 8)[inside], atol=0.6)


def test_a_noisy_picture_is_walked_down_from_its_own_level(workdir):
    run, _ = runs.load(workdir)
    ramp = np.linspace(-0.5, 0.5, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    noise = np.random.default_rng(0).standard_normal((16, 8, 8, 3)).astype(np.float32)
    pictures = images.to_uint8(ramp + 0.2 * noise)
    edit = edits.denoised(run, pictures)
    level = np.exp(-run.schedule.log_snr[edit.timesteps[0]] / 2)
    assert 0.1 < level < 0.3
    x, _ = edit.begin(None, pictures)
    np.testing.assert_allclose(
        x, as_float(pictures) / np.sqrt(1 + level**2), rtol=1e-4, atol=1e-4
    )


def test_interpolation_goes_from_sample_to_sample(draw):
    """Rows of four: ends are plain samples 0, 1 and 2, 3 of the same seed and class."""
    rows = draw("--interpolate", 4, "--labels", "3").reshape(2, 4, 8, 8, 3)
    plain = draw("--labels", "3")
    for row in range(2):
        for place, sample_of in ((0, 2 * row), (3, 2 * row + 1)):
            apart = rows[row, place].astype(int) - plain[sample_of]
            assert np.abs(apart).max() <= 1
    assert (rows[:, 1] != rows[:, 0]).any() and (rows[:, 1] != rows[:, 2]).any()


def test_a_row_is_of_one_class(draw, tmp_path):
    draw("--interpolate", 4, out="rows", num=6)
    classes = sorted(path.parent.name for path in (tmp_path / "rows").rglob("*.png"))
    assert classes == ["0000"] * 4 + ["0001"] * 2


def test_pictures_of_the_process(draw, picture, tmp_path):
    films = ["--gif", tmp_path / "a.gif", "--trajectory", tmp_path / "t.png"]
    draw(*films, "--steps", 5, out="a.png", num=4)
    with Image.open(tmp_path / "a.gif") as film, Image.open(tmp_path / "a.png") as last:
        assert film.n_frames == 5 and film.size == last.size
        film.seek(4)  # the last step is what was drawn
        apart = np.asarray(film.convert("RGB"), int) - np.asarray(last.convert("RGB"))
        assert np.abs(apart).mean() < 8  # GIF has 256 colours
    with Image.open(tmp_path / "t.png") as steps:
        tile = 8 * 8 + 2
        assert steps.size == (5 * tile + 2, 2 * 4 * tile + 2)
    images.save_png(tmp_path / "mask.png", np.full((8, 8, 1), 255, np.uint8))
    edit = ["--inpaint", picture[0], "--mask", tmp_path / "mask.png", "--repaint", 2]
    draw(*films, *edit, "--steps", 20, out="a.png", num=2)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 36  # steps down: 20, and four stretches of 4 again


def test_one_program_draws_the_whole_edit(workdir, picture):
    """RePaint over many steps is one scan, and its known pixels are exact in float."""
    run, params = runs.load(workdir)
    pictures = np.stack([picture[1]] * 2)
    mask = np.zeros((8, 8, 1), bool)
    mask[4:] = True
    edit = edits.painted(run, pictures, mask, repeats=3)
    draw = jax.jit(edits.make_draw(run, edit))
    keys, labels = experiment.sample_keys(0, 2), np.array([0, 1], np.int32)
    drawn, steps = draw(params, keys, labels, edit.given)
    assert steps is None and draw._cache_size() == 1
    known = jax.jit(images.to_float)(pictures)  # divided as compiled code does
    np.testing.assert_array_equal(drawn[:, :4], known[:, :4])


MISTAKES = [
    (["--init", "none.png"], "cannot read the picture none.png"),
    (["--init", "PICTURE", "--strength", "1.5"], "--strength must lie in (0, 1]"),
    (["--init", "PICTURE", "--upscale", "3"], "8x8, which it must divide"),
    (["--strength", "0.5"], "--strength belongs to --init"),
    (["--colourise"], "--colourise belongs to --init"),
    (["--repaint", "2"], "--repaint belongs to --inpaint"),
    (["--inpaint", "PICTURE"], "--inpaint and --mask go together"),
    (["--mask", "PICTURE"], "--inpaint and --mask go together"),
    (["--inpaint", "PICTURE", "--mask", "BLACK"], "--mask is black everywhere"),
    (["--inpaint", "PICTURE", "--mask", "PICTURE", "--repaint", "0"], "--repaint must"),
    (["--interpolate", "1"], "--interpolate must be at least 2"),
    (["--gif", "a.png"], "give a .gif"),
    (["--trajectory", "a.gif"], "give a .png"),
    (["--gif", "a.gif", "--num", "1000"], "give --num 100 or less"),
    (
        ["--sampler", "unipc", "--eta", "1"],
        "--eta does not belong to the sampler unipc",
    ),
]


@pytest.mark.parametrize("given, message", MISTAKES)
def test_mistakes(draw, picture, tmp_path, monkeypatch, given, message):
    images.save_png(tmp_path / "black.png", np.zeros((8, 8, 1), np.uint8))
    names = {"PICTURE": picture[0], "BLACK": tmp_path / "black.png"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        draw(*[names.get(each, each) for each in given])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_grey_model_has_no_colours_to_give(picture, tmp_path):
    runs.write(tmp_path / "r", tiny(), random_params(experiment.build(tiny())))
    with pytest.raises(ConfigError, match="needs a model of colour images"):
        call(sample, "--workdir", tmp_path / "r", "--init", picture[0], "--colourise")


def test_heun_has_its_spacing_unless_another_is_asked_for(workdir):
    parser = sample.add_arguments(sample.cli.parser(""))
    settings = config.load("configs/digits.py", ["timesteps.name=quadratic"])
    settings["timesteps"]["fraction"] = 0.7

    def timesteps(*given):
        args = parser.parse_args(["--workdir", "r", *given])
        return sample.arguments.sampling(settings, args)["timesteps"]

    assert timesteps("--sampler", "heun") == {"name": "karras", "num_steps": 50}
    assert timesteps("--sampler", "unipc")["fraction"] == 0.7
    asked = timesteps("--sampler", "heun", "--timesteps", "leading", "--steps", "9")
    assert asked == {"name": "leading", "num_steps": 9}


def test_noise_level_needs_no_model():
    flat = np.zeros((1, 8, 8, 1), np.float32)
    assert float(editing.noise_level(flat)[0]) == 0
