"""Networks of other books on the same chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
    conventions,
    denoisers,
    losses,
    process,
    samplers,
    schedules,
    timesteps,
    weightings,
)

SCHEDULE = schedules.log_snr_linear(1000)
SIGMA_DATA = 0.5
pytestmark = pytest.mark.usefixtures("x64")


def images(seed, num=1000):
    return np.random.default_rng(seed).standard_normal((num, 2, 2, 1))


def level(t):
    """The noise level sigma / alpha of Karras et al."""
    return np.exp(-SCHEDULE.log_snr[t] / 2)[:, None, None, None]


def test_preconditioning_is_that_of_the_paper():
    """Table 1, with x = x_0 + σ n."""
    t = np.arange(1, 1001)
    sigma, x = level(t), images(0) + level(t) * images(1)
    x_t = x / np.sqrt(1 + sigma**2)
    told = {}

    def network(params, given, time, cond, keys):
        told.update(given=given, time=time)
        return params

    apply = conventions.edm(network, SCHEDULE, SIGMA_DATA)
    found = apply(images(2), x_t, t - 1)
    total = np.sqrt(sigma**2 + SIGMA_DATA**2)
    np.testing.assert_allclose(told["given"], x / total, rtol=1e-9)
    np.testing.assert_allclose(told["time"], np.log(sigma).ravel() / 4, rtol=1e-9)
    c_skip, c_out = SIGMA_DATA**2 / total**2, sigma * SIGMA_DATA / total
    np.testing.assert_allclose(found, c_skip * x + c_out * images(2), rtol=1e-8)


def test_the_network_within_predicts_v_of_scaled_images_turned_round():
    """F = -v of x_0 / σ_data, at the noise level that these have."""
    t = np.arange(1, 1001)
    x_0, eps, output = images(0), images(1), images(2)
    x_t = process.diffuse(SCHEDULE, x_0, t, eps)
    scaled = schedules.shift(SCHEDULE, 2 * np.log(SIGMA_DATA))
    given = []
    apply = conventions.edm(
        lambda params, x, *_: given.append(x) or output, SCHEDULE, SIGMA_DATA
    )
    found = apply(None, x_t, t - 1)
    seen = process.diffuse(scaled, x_0 / SIGMA_DATA, t, eps)
    np.testing.assert_allclose(given[0], seen, rtol=1e-9, atol=1e-12)
    v = process.from_v(scaled, seen, t, -output)
    np.testing.assert_allclose(found, SIGMA_DATA * v.x_0, rtol=1e-7, atol=1e-10)


def test_its_loss_is_the_plain_error_of_the_network():
    """With the weight of the paper, which is 1 / c_out²."""
    data = {"image": jnp.asarray(images(0, 64)), "id": jnp.arange(64, dtype=jnp.uint32)}
    seen = []

    def network(params, x, time, cond, keys):
        seen.append((x, time))
        return jnp.tanh(x)

    apply = conventions.edm(network, SCHEDULE, SIGMA_DATA)
    loss, _ = losses.simple(apply, SCHEDULE, "x_0", weighting=weightings.edm)(
        None, data, jax.random.key(0)
    )
    ((x, time),) = seen
    sigma = np.exp(4 * time)[:, None, None, None]
    total = np.sqrt(sigma**2 + SIGMA_DATA**2)
    c_skip, c_out = SIGMA_DATA**2 / total**2, sigma * SIGMA_DATA / total
    target = (data["image"] - c_skip * x * total) / c_out
    np.testing.assert_allclose(loss, np.mean((np.tanh(x) - target) ** 2), rtol=1e-9)


def test_flows_are_given_their_own_mixture_and_time():
    t = np.arange(1, 1001)
    x_0, eps = images(0), images(1)
    told = []
    apply = conventions.flow(lambda params, *given: told.append(given), SCHEDULE)
    apply(None, process.diffuse(SCHEDULE, x_0, t, eps), t - 1)
    ((z, time, _, _),) = told
    mixed = time[:, None, None, None]
    np.testing.assert_allclose(
        z, mixed * x_0 + (1 - mixed) * eps, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(time, 1 / (1 + level(t).ravel()), rtol=1e-12)
    assert (np.diff(time) < 0).all()  # clean images have time 1


def flow_denoiser(seed=4):
    """A network of flows that predicts x_0, and the denoiser of ours that it makes."""
    w = np.random.default_rng(seed).standard_normal((4, 4)) / 2

    def network(params, z, time, cond=None, keys=None):
        mixed = jnp.tanh(z.reshape(len(z), 4) @ w) * (0.5 + time[:, None])
        return mixed.reshape(z.shape)

    apply = conventions.flow(network, SCHEDULE)
    return network, denoisers.from_network(apply, None, SCHEDULE, "x_0")


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_rectified_flows_are_walked_as_their_authors_do(method):
    """By Δτ (x̂ - ε̂): Euler's method is DDIM; Heun's corrects all steps but the last."""
    network, denoiser = flow_denoiser()
    times = timesteps.flow(SCHEDULE, 25)
    keys = jax.random.split(jax.random.key(0), 8)
    x_T = images(5, 8)
    kind = {"euler": samplers.ddim, "heun": samplers.heun_flow}[method]
    found, _ = samplers.sample(kind(SCHEDULE), denoiser, keys, x_T, times)

    time = np.append(1 / (1 + level(times[:-1]).ravel()), 1.0)
    alpha, sigma = schedules.alpha_sigma(SCHEDULE, times[0])
    z = x_T / float(alpha + sigma)

    def velocity(z, time):
        x_0 = np.asarray(network(None, z, np.full(len(z), time)))
        return x_0 - (z - time * x_0) / (1 - time)

    for now, after in zip(time[:-1], time[1:], strict=True):
        first = velocity(z, now)
        trial = z + (after - now) * first
        if method == "heun" and after < 1:
            trial = z + (after - now) / 2 * (first + velocity(trial, after))
        z = trial
    np.testing.assert_allclose(found, z, rtol=1e-9, atol=1e-11)


def test_even_flow_times_are_even():
    fine = schedules.log_snr_linear(100_000)
    times = timesteps.flow(fine, 10)[1:-1]
    found = 1 / (1 + np.exp(-fine.log_snr[times] / 2))
    np.testing.assert_allclose(found, np.arange(1, 10) / 10, atol=1e-4)
    assert timesteps.flow(fine, 10)[0] == 100_000


def test_preconditioned_networks_learn_no_variance():
    twice = lambda params, x, *_: jnp.concatenate([x, x], -1)
    with pytest.raises(ValueError, match="preconditioned networks learn no variance"):
        conventions.edm(twice, SCHEDULE)(None, images(0, 2), np.array([3, 4]))
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        conventions.edm(twice, SCHEDULE, 0.0)
    noise = schedules.zero_terminal_snr(schedules.cosine(50))
    with pytest.raises(ValueError, match="infinite on a schedule with zero"):
        conventions.edm(twice, noise)
