"""Whole trajectories against diffusers and ermongroup/ddim (see tests/data/README.md).

Their index i counts one noising step as 0: our time is i + 1, and the last one is 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, editing, samplers, schedules, timesteps
from ddpm_jax.diffusion.samplers import base, loop

GOLDEN = np.load("tests/data/trajectories.npz")
SCHEDULE = schedules.linear()
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
SINGLE = {"rtol": 5e-7, "atol": 1e-6}  # they compute in float32


def array(key):
    return jnp.asarray(GOLDEN[key], jnp.result_type(float))


def keys():
    return jax.random.split(jax.random.key(0), len(GOLDEN["x"]))


def toy(ripple=0.0):
    """The exact eps of data ~ N(0.1, 0.5^2), and a nonlinear term."""

    def apply(params, x, index, *_):
        a = schedules.alpha_sigma(SCHEDULE, index + 1)[0].reshape(-1, 1, 1, 1) ** 2
        gaussian = jnp.sqrt(1 - a) * (x - 0.1 * jnp.sqrt(a)) / (0.25 * a + 1 - a)
        return gaussian + ripple * jnp.sin(3 * x)

    return denoisers.from_network(apply, None, SCHEDULE)


def walk(method, x_T, times, denoiser=None):
    """Returns the states after each step, and the predictions of x_0."""
    observe = lambda state, prediction: (state.x, prediction.x_0)
    denoiser = denoiser or toy()
    times = np.asarray(times, np.int32)
    return loop.sample(method, denoiser, keys(), x_T, times, observe)[1]


def downward(key):
    return np.append(GOLDEN[f"{key}/timesteps"] + 1, 0)


def draw_in_turn(monkeypatch, method, noises):
    """Gives the noises to the steps of a sampler in turn, one per step."""

    def init(x_T):
        return samplers.SamplerState(x_T, (method.init(x_T), jnp.array(0)))

    def step(denoiser, keys, state, t, s):
        inner, i = state.memory
        monkeypatch.setattr(base, "standard_normal", lambda keys, x: noises[i])
        inner, prediction = method.step(denoiser, keys, inner, t, s)
        return samplers.SamplerState(inner.x, (inner, i + 1)), prediction

    return samplers.Sampler(init, step)


def one_step(method, x, out, t, s, bound=lambda denoiser: denoiser):
    denoiser = bound(denoisers.from_network(lambda *_: out, None, SCHEDULE))
    times = jnp.array([t, s])
    return method.step(denoiser, keys(), method.init(x), *times)


@pytest.mark.parametrize("num_steps", [10, 50])
def test_ddim(x64, num_steps):
    key = f"traj/ddim{num_steps}_eta0"
    times = timesteps.leading(SCHEDULE, num_steps)
    np.testing.assert_array_equal(times, downward(key))
    xs, _ = walk(samplers.ddim(SCHEDULE), array(f"{key}/xs")[0], times)
    np.testing.assert_allclose(xs, GOLDEN[f"{key}/xs"][1:], **TOLERANCE)


@pytest.mark.parametrize(
    "name", ["ddpm10_small", "ddpm10_large", "ddpm50_small", "ddpm50_large"]
)
def test_ddpm(x64, monkeypatch, name):
    key, variance = f"traj/{name}", f"fixed_{name.split('_')[1]}"
    method = samplers.ddpm(SCHEDULE, variance)
    method = draw_in_turn(monkeypatch, method, array("traj_noise"))
    xs, _ = walk(method, array(f"{key}/xs")[0], downward(key))
    np.testing.assert_allclose(xs, GOLDEN[f"{key}/xs"][1:], **TOLERANCE)


@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize(
    "name, method",
    [
        ("dpmpp1", samplers.ddim),
        ("dpmpp2m", samplers.dpmpp_2m),
        ("unipc2", samplers.unipc),
    ],
)
def test_multistep(x64, name, method, num_steps):
    key = f"traj/{name}_{num_steps}"
    xs, _ = walk(method(SCHEDULE), array(f"{key}/xs")[0], downward(key))
    theirs = GOLDEN[f"{key}/xs"][1:]
    np.testing.assert_allclose(xs, theirs, **SINGLE)


@pytest.mark.parametrize("num_steps", [10, 20])
def test_heun(x64, num_steps):
    """They list a step as two, and walk in x / alpha."""
    key = f"traj/heun_{num_steps}"
    theirs, listed = GOLDEN[f"{key}/xs"], GOLDEN[f"{key}/timesteps"].astype(int)
    times = np.append([*listed[:1], *listed[1::2]], -1) + 1
    alpha = np.asarray(schedules.alpha_sigma(SCHEDULE, times)[0])[:, None, None, None]
    alpha = alpha[:, None]
    x_T = jnp.asarray(theirs[0] * alpha[0])
    xs, _ = walk(samplers.heun(SCHEDULE), x_T, times)
    expected = alpha[1:] * np.stack([*theirs[1:][1::2], theirs[-1]])
    np.testing.assert_allclose(xs, expected, **SINGLE)


@pytest.mark.parametrize("num_steps", [10, 50])
def test_inversion(x64, num_steps):
    theirs = GOLDEN[f"inv/{num_steps}/traj"]
    times = timesteps.leading(SCHEDULE, num_steps)[::-1]
    np.testing.assert_array_equal(times[1:] - 1, GOLDEN[f"inv/{num_steps}/timesteps"])
    xs, _ = walk(editing.inversion(SCHEDULE), array("x0"), times)
    np.testing.assert_allclose(xs, theirs[1:], **TOLERANCE)
    encoded = editing.encode(toy(), SCHEDULE, array("x0"), times[::-1])
    np.testing.assert_allclose(encoded, theirs[-1], **TOLERANCE)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("i", [0, 20, 500, 980])
def test_a_step_of_repaint(x64, monkeypatch, i, eta):
    """Theirs draws one noise for both parts, clips x_0 and keeps eps; 50 steps."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: array("noise"))
    paint = GOLDEN["mask"] == 0
    method = samplers.ddim(SCHEDULE, float(eta))
    method = editing.inpaint(method, SCHEDULE, array("x0"), jnp.asarray(paint))
    method = editing.resample(method, SCHEDULE)
    clip = lambda denoiser: denoisers.clip(denoiser, SCHEDULE, rederive=False)
    t, s = i + 1, max(i - 20 + 1, 0)
    state, _ = one_step(method, array("x"), array("out"), t, s, clip)
    theirs = GOLDEN[f"repaint/step/eta{eta}/t{i}/prev"]
    np.testing.assert_allclose(state.x, theirs, **TOLERANCE)


@pytest.mark.parametrize("i", [0, 500])
def test_repaint_goes_up_unit_by_unit(x64, monkeypatch, i):
    """Four times x <- sqrt(1 - β) x + sqrt(β) z: a step of 250."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: array("noise"))
    method = editing.resample(samplers.ddim(SCHEDULE), SCHEDULE)
    xs, _ = walk(method, array("x"), np.arange(i, i + 5))
    np.testing.assert_allclose(xs[-1], GOLDEN[f"repaint/undo/t{i}"], **TOLERANCE)


@pytest.mark.parametrize("i", [10, 500, 999])
def test_dynamic_thresholding(x64, monkeypatch, i):
    """Ratio 0.8, at most 2; in a step of DDPM of 1000, whose mean follows x_0."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: array("noise"))
    bound = lambda denoiser: denoisers.threshold(denoiser, SCHEDULE, 80.0, 2.0)
    method = samplers.ddpm(SCHEDULE)
    state, seen = one_step(method, array("x"), array("out"), i + 1, i, bound)
    key = f"dyn/epsilon/t{i}"
    np.testing.assert_allclose(seen.x_0, GOLDEN[f"{key}/x0"], **TOLERANCE)
    np.testing.assert_allclose(state.x, GOLDEN[f"{key}/prev"], **TOLERANCE)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize(
    "name, spacing", [("uniform", timesteps.leading), ("quad", timesteps.quadratic)]
)
def test_ddim_of_its_authors(x64, monkeypatch, name, spacing, num_steps, eta):
    """Their generalized_steps, without clipping; step k adds noise of seed 7000 + k."""
    times, key = spacing(SCHEDULE, num_steps), f"ermon/{name}/{num_steps}"
    np.testing.assert_array_equal(times[-2::-1] - 1, GOLDEN[f"{key}/seq"])
    draw = lambda seed: np.random.default_rng(seed).standard_normal(GOLDEN["x"].shape)
    noises = jnp.stack([jnp.asarray(draw(7000 + k)) for k in range(num_steps)])
    method = samplers.ddim(SCHEDULE, float(eta))
    method = draw_in_turn(monkeypatch, method, noises)
    xs, x_0s = walk(method, jnp.asarray(draw(5)), times, toy(0.1))
    np.testing.assert_allclose(x_0s[0], GOLDEN[f"{key}/eta{eta}/x0_first"], **TOLERANCE)
    np.testing.assert_allclose(xs[-1], GOLDEN[f"{key}/eta{eta}/xs_last"], **TOLERANCE)
