"""Editing on the command line: what comes out of pictures that go in."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import call, plain, random_params

import ddpm_jax
from ddpm_jax import sample
from ddpm_jax.data import images
from ddpm_jax.diffusion import editing
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, config, options
from ddpm_jax.experiment import run as runs
from ddpm_jax.files import read_arrays
from ddpm_jax.sampling import pictures as drawings
from ddpm_jax.sampling import tasks
from ddpm_jax.sampling.draw import sample_keys

COLOURED = ("image_shape=8,8,3", "sampler={'name': 'ddim'}", "schedule.num_steps=100")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits") / "run"
    settings = plain(*COLOURED)
    runs.write(folder, settings, random_params(build.build(settings)))
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
        if {"--init", "--inpaint"} & {*args}:
            args = ["--labels", 3, *args]
        given = ["--workdir", workdir, "--num", num, "--out", tmp_path / out]
        call(sample, *given, *args)
        return read_arrays(tmp_path / out)["images"] if out.endswith(".npz") else None

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


def test_a_mask_is_cut_as_its_pictures_are(tmp_path):
    """In their shape, or in that of the model; what is transparent stays."""
    pixels = np.zeros((10, 20, 4), np.uint8)
    pixels[:, :, :3] = 255  # white, but only this is there:
    pixels[:, 5:10, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    wide, square = tmp_path / "wide.png", tmp_path / "square.png"
    images.save_png(wide, np.zeros((40, 80, 3), np.uint8))
    images.save_png(square, np.zeros((5, 5, 3), np.uint8))
    mask = tasks.read_mask(tmp_path / "mask.png", [wide], (10, 10, 3))
    np.testing.assert_array_equal(mask[..., 0], np.tile(np.arange(10) < 5, (10, 1)))
    tasks.read_mask(tmp_path / "mask.png", [wide, square], (10, 20, 3))
    with pytest.raises(ConfigError, match="mask.png is 10x20, but .*square.png is 5x5"):
        tasks.read_mask(tmp_path / "mask.png", [wide, square], (10, 10, 3))


def test_other_channels_than_those_of_pictures(tmp_path, picture):
    settings = plain("image_shape=8,8,4")
    runs.write(tmp_path / "r", settings, random_params(build.build(settings)))
    given = ["--workdir", tmp_path / "r", "--num", 2, "--labels", 1]
    for out in (["--out", tmp_path / "a.png"], ["--out", tmp_path / "a"]):
        with pytest.raises(ConfigError, match="4 channels cannot be shown: .* an .npz"):
            call(sample, *given, *out)
    with pytest.raises(ConfigError, match="4 channels is not one of pictures"):
        call(sample, *given, "--out", tmp_path / "a.npz", "--init", picture[0])
    call(sample, *given, "--out", tmp_path / "a.npz")
    assert read_arrays(tmp_path / "a.npz")["images"].shape == (2, 8, 8, 4)


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
    assert whole.sum() > 5
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
    run = ddpm_jax.load(workdir)
    ramp = np.linspace(-0.5, 0.5, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    noise = np.random.default_rng(0).standard_normal((16, 8, 8, 3)).astype(np.float32)
    pictures = images.to_uint8(ramp + 0.2 * noise)
    edit = tasks.denoise(run, pictures, tasks.noise_of(pictures))
    level = np.exp(-run.schedule.log_snr[edit.timesteps[0]] / 2)
    assert 0.1 < level < 0.3
    x, _ = edit.begin(None, pictures)
    np.testing.assert_allclose(
        x, as_float(pictures) / np.sqrt(1 + level**2), rtol=1e-4, atol=1e-4
    )


def read_all(folder, num):
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.name)
    assert [path.stem for path in paths] == [f"{i:06d}" for i in range(num)]
    return np.stack([images.read(path, 3) for path in paths])


def test_a_folder_goes_on_where_it_was_stopped(draw, tmp_path, monkeypatch, capsys):
    """Every image is that of one go; another command is refused."""
    given = ["--labels", "3,7", "--batch_size", 1]
    whole = draw(*given, num=20)
    save = images.save_png
    with monkeypatch.context() as stopping:
        left = iter(range(6))

        def stop(path, picture):
            if next(left, None) is None:
                raise KeyboardInterrupt
            save(path, picture)

        stopping.setattr(images, "save_png", stop)
        with pytest.raises(KeyboardInterrupt):
            draw(*given, num=20, out="f")
    assert "the same command goes on" in capsys.readouterr().err
    folder = tmp_path / "f"
    np.testing.assert_array_equal(read_all(folder, 6), whole[:6])
    assert "classes" not in json.loads((folder / drawings.RECORD).read_text())
    draw(*given, num=20, out="f")
    assert "6 of 20 images are in" in capsys.readouterr().out
    np.testing.assert_array_equal(read_all(folder, 20), whole)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "0003", "0007"
    ]  # fmt: skip
    with monkeypatch.context() as nothing_left:
        nothing_left.setattr(images, "save_png", None)
        draw(*given, num=20, out="f")
    for change in (["--seed", 1], ["--steps", 3], ["--config.denoiser.clip=False"]):
        with pytest.raises(ConfigError, match="samples of another command"):
            draw(*given, *change, num=20, out="f")
    with pytest.raises(ConfigError, match="20 images already, more than --num 6: give"):
        draw(*given, num=6, out="f")
    (folder / drawings.RECORD).unlink()
    with pytest.raises(ConfigError, match="there already"):
        draw(*given, num=20, out="f")


def test_what_is_drawn_for_one_file_is_kept_until_it_is_written(
    draw, tmp_path, monkeypatch
):
    keep, whole = drawings.PartialResults.__call__, draw("--batch_size", 1, num=20)
    with monkeypatch.context() as stopping:
        left = iter(range(1))

        def stop(store, positions, compute):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return keep(store, positions, compute)

        stopping.setattr(drawings.PartialResults, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            draw("--batch_size", 1, num=20, out="b.npz")
    (part,) = tmp_path.rglob(".b.npz.parts/*/*.npz")
    first = read_arrays(part)["pictures"]
    np.savez(part, pictures=255 - first)  # seen again if it is used
    drawn = draw("--batch_size", 1, num=20, out="b.npz")
    np.testing.assert_array_equal(drawn[: len(first)], 255 - whole[: len(first)])
    np.testing.assert_array_equal(drawn[len(first) :], whole[len(first) :])
    assert not (tmp_path / ".b.npz.parts").exists()


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
        assert film.n_frames == 6 and film.size == last.size
        film.seek(5)  # from noise to what was drawn
        apart = np.asarray(film.convert("RGB"), int) - np.asarray(last.convert("RGB"))
        assert np.abs(apart).mean() < 8  # GIF has 256 colours
    with Image.open(tmp_path / "t.png") as steps:
        tile = 8 * 8 + 2
        assert steps.size == (5 * tile + 2, 2 * 4 * tile + 2)
    mask = np.full((8, 8, 1), 255, np.uint8)
    mask[0] = 0
    images.save_png(tmp_path / "mask.png", mask)
    edit = ["--inpaint", picture[0], "--mask", tmp_path / "mask.png", "--repaint", 2]
    draw(*films, *edit, "--steps", 20, out="a.png", num=2)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 37  # steps down: 20, and four stretches of 4 again


def test_one_program_draws_the_whole_edit(workdir, picture):
    """RePaint over many steps is one scan, and its known pixels are exact."""
    run = ddpm_jax.load(workdir)
    params = run.params
    pictures = np.stack([picture[1]] * 2)
    mask = np.zeros((8, 8, 1), bool)
    mask[4:] = True
    edit = tasks.inpaint(run, pictures, mask, repeats=3)
    draw = jax.jit(tasks.make_draw(run, edit))
    keys, labels = sample_keys(0, 2), np.array([0, 1], np.int32)
    drawn, steps = draw(params, keys, labels, edit.given)
    assert steps is None and draw._cache_size() == 1
    np.testing.assert_array_equal(drawn[:, :4], pictures[:, :4])


MISTAKES = [
    (["--init", "none.png"], "there is no picture none.png"),
    (["--init", "TEXT"], "cannot read the picture"),
    (["--init", "PICTURE", "--upscale", "2"], "is 8x8, but must be 4x4 here"),
    (["--out", "a.png", "--trajectory", "a.png"], "must be different files"),
    (["--out", "folder.png"], "there is a folder of that name"),
    (["--sampler", "sampler"], "unknown name 'sampler'"),
    (["--init", "PICTURE", "--strength", "1.5"], "--strength must lie in (0, 1]"),
    (["--init", "PICTURE", "--upscale", "3"], "that divides the size"),
    (["--strength", "0.5"], "--strength belongs to --init"),
    (["--colourise"], "--colourise belongs to --init"),
    (["--repaint", "2"], "--repaint belongs to --inpaint"),
    (["--inpaint", "PICTURE"], "--inpaint and --mask go together"),
    (["--mask", "PICTURE"], "--inpaint and --mask go together"),
    (["--inpaint", "PICTURE", "--mask", "BLACK"], "--mask is black everywhere"),
    (["--inpaint", "PICTURE", "--mask", "PICTURE", "--repaint", "0"], "--repaint must"),
    (["--inpaint", "PICTURE", "--mask", "WHITE"], "--mask is white everywhere"),
    (["--inpaint", "PICTURE", "--mask", "CLEAR"], "--mask is black everywhere, or tr"),
    (["--inpaint", "PICTURE", "--mask", "WIDE"], "is 8x16, but "),
    (["--init", "PICTURE", "--denoise", "0"], "--denoise must be"),
    (["--init", "PICTURE", "--denoise", "-5"], "above 0, and at most"),
    (["--init", "PICTURE", "--denoise", "nan"], "at most 255 with this model, got nan"),
    (["--init", "PICTURE", "--denoise", "256"], "with this model, got 256"),
    (["--init", "PICTURE", "--strength", "nan"], "--strength must lie in (0, 1]"),
    (["--guidance_scale", "nan"], "guidance_scale must be a number, got nan"),
    (["--guidance_scale", "inf"], "guidance_scale must be a number, got inf"),
    (["--eta", "nan"], "eta must be a number, got nan"),
    (["--eta", "-1"], "eta must lie in [0, 1], got -1"),
    (["--steps", "0"], "num_steps must be 1 ... 100"),
    (["--interpolate", "1"], "--interpolate must be 2 ... --num (8)"),
    (["--interpolate", "9"], "--interpolate must be 2 ... --num (8)"),
    (["--gif", "a.png"], "give a .gif"),
    (["--trajectory", "a.gif"], "give a .png"),
    (["--gif", "a.gif", "--num", "1000000"], "keep every step"),
    (
        ["--sampler", "unipc", "--eta", "1"],
        "--eta does not belong to the sampler unipc",
    ),
]


@pytest.mark.parametrize("given, message", MISTAKES)
def test_mistakes(draw, picture, tmp_path, monkeypatch, given, message):
    images.save_png(tmp_path / "black.png", np.zeros((8, 8, 1), np.uint8))
    (tmp_path / "text.png").write_text("a text")
    (tmp_path / "folder.png").mkdir()
    names = {"PICTURE": picture[0], "BLACK": tmp_path / "black.png"}
    names |= {"TEXT": tmp_path / "text.png", "WIDE": tmp_path / "wide.png"}
    wide = np.tile(np.array([0, 255], np.uint8), (8, 8))
    images.save_png(tmp_path / "wide.png", wide)
    for name, colour in (("WHITE", (255,) * 4), ("CLEAR", (255, 255, 255, 0))):
        names[name] = tmp_path / f"{name}.png"
        Image.new("RGBA", (8, 8), colour).save(names[name])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        draw(*[names.get(each, each) for each in given])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_grey_model_has_no_colours_to_give(picture, tmp_path):
    runs.write(tmp_path / "r", plain(), random_params(build.build(plain())))
    with pytest.raises(ConfigError, match="needs a model of colour images"):
        given = ["--init", picture[0], "--colourise", "--labels", 3]
        call(sample, "--workdir", tmp_path / "r", *given)


def test_heun_has_its_spacing_unless_another_is_asked_for(workdir):
    parser = sample.add_arguments(sample.command.parser(""))
    settings = config.read_config("configs/digits.py", ["timesteps.name=quadratic"])
    settings["timesteps"]["fraction"] = 0.7

    def sections(*given, overrides=()):
        args = parser.parse_args(["--workdir", "r", *given])
        args.overrides = [*overrides]
        changed = config.override(settings, overrides)
        return options.with_sampling(changed, sample.arguments.sampling(args))

    def timesteps(*given, overrides=()):
        return sections(*given, overrides=overrides)["timesteps"]

    asked = timesteps("--sampler", "heun", overrides=["timesteps.name=leading"])
    assert asked == {"name": "leading", "num_steps": 50}
    asked = timesteps("--timesteps", "karras", overrides=["timesteps.rho=3"])
    assert asked == {"name": "karras", "num_steps": 50, "rho": 3}
    asked = timesteps("--timesteps", "custom", overrides=["timesteps.times=9,5"])
    assert asked == {"name": "custom", "times": [9, 5]}
    drawn = ["sampler.name=heun", "sampler.churn=0.2"]
    assert sections(overrides=drawn)["sampler"] == {"name": "heun", "churn": 0.2}
    assert sections("--sampler", "heun", overrides=drawn[1:])["sampler"]["churn"] == 0.2
    whole = ["sampler={'name': 'ddpm', 'variance': 'fixed_large'}"]
    assert sections(overrides=whole)["sampler"]["variance"] == "fixed_large"
    assert timesteps("--sampler", "heun") == {"name": "karras", "num_steps": 50}
    assert timesteps("--sampler", "unipc")["fraction"] == 0.7
    asked = timesteps("--sampler", "heun", "--timesteps", "leading", "--steps", "9")
    assert asked == {"name": "leading", "num_steps": 9}


def test_noise_level_needs_no_model():
    flat = np.zeros((1, 8, 8, 1), np.float32)
    assert float(editing.noise_level(flat)[0]) == 0


def test_a_picture_without_its_class_is_edited_without_one(workdir, picture, tmp_path):
    """A null class is used where there is one, and a class asked for where not."""
    settings = plain(*COLOURED, "network.label_dropout=0.1")
    params = random_params(build.build(settings))
    runs.write(tmp_path / "free", settings, params)
    given = ["--workdir", tmp_path / "free", "--init", picture[0], "--num", 8]
    drawn = []
    for extra in ([], ["--guidance_scale", 0], ["--labels", 3]):
        call(sample, *given, *extra, "--out", tmp_path / "a.npz")
        drawn.append(read_arrays(tmp_path / "a.npz")["images"])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    with pytest.raises(ConfigError, match="--labels: this model must be told"):
        call(sample, "--workdir", workdir, "--init", picture[0], "--num", 8)


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255  # black above, nothing below
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (read,) = tasks.read([tmp_path / "a.png"], (4, 4, 1))
    assert (read[:2] == 0).all() and (read[2:] == 255).all()


def test_the_trajectory_pairs_a_picture_with_what_is_predicted_of_it(workdir):
    run = ddpm_jax.load(workdir)
    params = run.params
    draw = tasks.make_draw(run, tasks.generate(run), watched=True)
    keys, labels = sample_keys(0, 2), np.array([0, 1], np.int32)
    drawn, (walk, predicted) = draw(params, keys, labels, None)
    steps = len(run.timesteps) - 1
    assert walk.shape[:2] == (2, steps + 1) and predicted.shape[:2] == (2, steps)
    np.testing.assert_array_equal(walk[:, -1], drawn)
    x_T, _ = sample.tasks.loop.draw_prior(keys, run.image_shape)
    np.testing.assert_array_equal(walk[:, 0], images.to_uint8(x_T))
    first = run.denoiser(params, labels)(x_T, run.timesteps[0]).x_0
    apart = predicted[:, 0].astype(int) - images.to_uint8(first)
    assert np.abs(apart).max() <= 1
