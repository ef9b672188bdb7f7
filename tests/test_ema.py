"""Averages of parameters: their profiles, and one made of others afterwards."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call, fit, plain

import ddpm_jax
from ddpm_jax import ema as ema_main
from ddpm_jax import evaluate
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import report
from ddpm_jax.experiment import build, run
from ddpm_jax.training import ema, snapshots
from ddpm_jax.training.ema import Average, constant, half_life, power


def profile(average, num, batch_size=1):
    """The weight of each update in an average after `num` of them, float64."""
    step_sizes = jax.vmap(lambda t: average(t, batch_size))(jnp.arange(1, num + 1))
    step_sizes = np.asarray(step_sizes, np.float64)
    later = np.cumprod(np.append(1 - step_sizes[1:], 1.0)[::-1])[::-1]
    return step_sizes * later


def test_published_exponents():
    """Karras et al. (2024), Section 3.1: 16.97 for 5 % and 6.94 for 10 %."""
    for sigma_rel, gamma in ((0.05, 16.97), (0.10, 6.94), (0.15, 3.56), (0.20, 1.83)):
        assert abs(ema.gamma_of(sigma_rel) - gamma) < 0.005
    gamma = ema.gamma_of(0.1)
    width = np.sqrt((gamma + 1) / (gamma + 2) ** 2 / (gamma + 3))  # equation 123
    np.testing.assert_allclose(width, 0.1, rtol=1e-9)
    for outside in (0.0, -0.1, 0.29, np.nan):
        with pytest.raises(ValueError, match="between 0 and 0.289"):
            ema.gamma_of(outside)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_the_profile_is_a_power_of_time(sigma_rel):
    """Against the integral of (gamma + 1) tau^gamma / t^(gamma + 1)."""
    num, gamma = 400, ema.gamma_of(sigma_rel)
    edges = np.arange(num + 1) / num
    weights = profile(Average(power, (("sigma_rel", sigma_rel),)), num)
    np.testing.assert_allclose(weights, np.diff(edges ** (gamma + 1)), atol=2e-6)
    centre = weights @ np.arange(num)
    spread = np.sqrt(weights @ (np.arange(num) - centre) ** 2)
    np.testing.assert_allclose(spread / num, sigma_rel, rtol=5e-3)


def test_a_weight_halves_over_the_half_life():
    settings = (("images", 640.0), ("ramp_up", None))
    weights = profile(Average(half_life, settings), 300, batch_size=32)
    np.testing.assert_allclose(weights[-1] / weights[-21], 2, rtol=1e-4)


def test_the_half_life_is_ramped_up():
    """By Karras et al. (2022): beta = 2^(-batch / min(h, ramp * images seen))."""
    for t, seen in ((2, 8), (11, 80), (1000, 7992)):
        beta = 0.5 ** (8 / min(100, 0.05 * seen))
        step_size = half_life(jnp.int32(t), 8, images=100.0, ramp_up=0.05)
        np.testing.assert_allclose(1 - step_size, beta, rtol=1e-5)


@pytest.mark.parametrize(
    "average",
    [
        Average(constant, (("decay", 0.9),)),
        Average(half_life, (("images", 50.0),)),
        Average(half_life, (("images", 50.0), ("ramp_up", None))),
        Average(power, (("sigma_rel", 0.1),)),
    ],
)
def test_the_first_update_copies_and_weights_add_up(average):
    assert profile(average, 1) == [1.0]
    np.testing.assert_allclose(profile(average, 50).sum(), 1, rtol=1e-6)


def test_inner_products_are_those_of_the_profiles():
    rows = np.array([[3.0, 2.0], [5.0, 7.5], [4.0, 0.3]])
    tau = (np.arange(200_000) + 0.5) * 5 / 200_000
    profiles = [
        np.where(tau < t, (g + 1) * (tau / t) ** g / t, 0) * 5 / 200_000
        for t, g in rows
    ]
    products = np.array([[a @ b for b in profiles] for a in profiles]) / (5 / 200_000)
    np.testing.assert_allclose(ema.overlaps(rows, rows), products, rtol=2e-5)


def walk(num):
    """Parameters that wander, as in training, float64."""
    steps = np.random.default_rng(0).standard_normal((num, 50))
    return steps.cumsum(0) / np.arange(1, num + 1)[:, None] ** 0.7


def averaged(path, sigma_rel, num):
    return profile(Average(power, (("sigma_rel", sigma_rel),)), num) @ path[:num]


@pytest.mark.parametrize("wanted", [0.03, 0.075, 0.15, 0.2])
def test_an_average_that_was_kept_is_reconstructed(wanted):
    """To 1e-3 of its size, of two others and forty snapshots each."""
    path, stored = walk(1000), []
    for t in range(25, 1001, 25):
        stored += [(t, width, averaged(path, width, t)) for width in (0.05, 0.1)]
    weights = ema.coefficients([(t, width) for t, width, _ in stored], 1000, wanted)
    np.testing.assert_allclose(weights.sum(), 1)
    made = sum(w * kept for w, (_, _, kept) in zip(weights, stored, strict=True))
    exact = averaged(path, wanted, 1000)
    error = np.linalg.norm(made - exact) / np.linalg.norm(exact)
    assert error < (1e-3 if wanted > 0.05 else 3e-2)


def test_what_was_stored_is_its_own_reconstruction():
    stored = [(t, width) for t in (10, 20, 30) for width in (0.05, 0.1)]
    for i, (t, width) in enumerate(stored):
        weights = ema.coefficients(stored, t, width)
        np.testing.assert_allclose(weights, np.eye(6)[i], atol=1e-6)


SEVERAL = (
    "network.label_dropout=0.1",
    "train.num_steps=6",
    "train.snapshot_every=1",
    "train.averages.narrow={'name': 'power', 'sigma_rel': 0.05}",
    "train.averages.wide={'name': 'power', 'sigma_rel': 0.1}",
    "train.averages.middle={'name': 'power', 'sigma_rel': 0.15}",
    "train.averages.half={'name': 'half_life', 'images': 100}",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "several"
    assert fit(plain(*SEVERAL), workdir) == 0
    return workdir


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def test_averages_are_chosen_by_name(workdir):
    loaded = {
        name: ddpm_jax.load(workdir, ema=name).params
        for name in ("ema", "narrow", "wide", "half", "raw")
    }
    assert distance(loaded["ema"], ddpm_jax.load(workdir).params) == 0
    assert distance(loaded["raw"], ddpm_jax.load(workdir, ema=False).params) == 0
    distances = [distance(loaded["raw"], loaded[n]) for n in ("narrow", "wide", "ema")]
    assert 0 < distances[0] < distances[1] < distances[2]
    words = "has no ema lost: there is ema, half, middle, narrow, wide"
    with pytest.raises(ConfigError, match=words):
        ddpm_jax.load(workdir, ema="lost")


def test_an_average_is_made_of_snapshots(workdir, tmp_path, capsys):
    """Of those of a run, with a folder of its own and without."""
    kept = ddpm_jax.load(workdir, ema="middle").params
    made = ddpm_jax.load(workdir, ema=0.15).params
    raw = ddpm_jax.load(workdir, ema="raw").params
    assert distance(made, kept) < 1e-3 * distance(raw, kept)
    given = ["--workdir", workdir, "--sigma_rel", 0.15, "--out", tmp_path / "new"]
    call(ema_main, *given)
    assert "the average of sigma_rel 0.15 at step 6" in capsys.readouterr().out
    assert distance(ddpm_jax.load(tmp_path / "new").params, made) == 0
    with pytest.raises(ConfigError, match="it is there already"):
        call(ema_main, *given)


def test_what_cannot_be_reconstructed(workdir, tmp_path):
    with pytest.raises(ConfigError, match="between 0 and 0.289, got 0.4"):
        ddpm_jax.load(workdir, ema=0.4)
    with pytest.raises(ConfigError, match="at step 9: .* of steps 1 ... 6"):
        ddpm_jax.load(workdir, ema=0.1, step=9)
    leave_out = shutil.ignore_patterns("snapshots")
    shutil.copytree(workdir, tmp_path / "plain", ignore=leave_out)
    with pytest.raises(ConfigError, match="no snapshots in .*: training stores them"):
        ddpm_jax.load(tmp_path / "plain", ema=0.1)
    like = ddpm_jax.load(workdir).params
    snapshots.save(tmp_path, 1, "a", 0.1, like)
    (found,) = snapshots.listed(tmp_path)
    found.path.write_bytes(found.path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no readable .npz"):
        snapshots.reconstruct(tmp_path, like, 0.1, 1)


def test_a_sweep_over_averages_and_guidance(workdir, tmp_path, capsys):
    given = ["--workdir", workdir, "--metrics", "fd", "--num", 8]
    given += ["--features", "pixels", "--out", tmp_path / "scores.json"]
    sweep = ["ddim:2", "guidance_scale:0,1", "weights:narrow,0.15,raw", "data:test"]
    call(evaluate, *given, "--sweep", *sweep)
    names = [score.subject for score in report.load(tmp_path / "scores.json")]
    assert [name for name in names if "guidance 1" in name] == [
        "ddim, guidance 1, narrow:2",
        "ddim, guidance 1, sigma_rel 0.15:2",
        "ddim, guidance 1, raw:2",
    ]
    assert len(names) == 7 and "data:test" in names
    both = ["--weights", "raw", "--sweep", "weights:narrow"]
    with pytest.raises(ConfigError, match="--sweep weights says what --weights does"):
        call(evaluate, *given, *both)
    with pytest.raises(ConfigError, match="guidance_scale: 'x' is no number"):
        call(evaluate, *given, "--sweep", "guidance_scale:x")


REFUSED = {
    "train.averages.ema={'name': 'power', 'sigma_rel': 0.1}": "is that of ema_decay",
    "train.ema_decay=None": "with ema_decay=None one of averages",
    "train.averages.raw={'name': 'constant'}": "'raw' is no name for one",
    "train.averages.a=powr": "train.averages.a: unknown name 'powr'; did you mean",
    "train.averages.a={'name': 'power', 'sigma_rel': 0.5}": "between 0 and 0.289",
    "train.averages.a={'name': 'power', 'sigma': 0.5}": "'sigma'; did you mean 'sigma_",
    "train.averages.a={'name': 'half_life', 'images': 0}": "must be positive",
    "train.averages.a={'name': 'constant', 'decay': 1.0}": "decay must lie in .0, 1.",
    "train.averages.a=power": "missing 1 required",
}


@pytest.mark.parametrize("override", REFUSED)
def test_mistakes_are_named(override):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        build.build(plain(override))


def test_an_average_may_replace_the_plain_one(tmp_path):
    """And weights that go elsewhere are one average, whatever the run had."""
    changes = "train.ema_decay=None", "train.averages.ema={'name': 'half_life', "
    changes = changes[0], changes[1] + "'images': 100}"
    settings = plain(*changes)
    built = build.build(settings)
    assert [*built.training.averaging] == ["ema"]
    run.write(tmp_path / "run", settings, jax.jit(built.model.init)(jax.random.key(0)))
    assert ddpm_jax.load(tmp_path / "run").params
