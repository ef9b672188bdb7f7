"""The sampling loop and the functions made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, samplers, schedules, timesteps
from ddpm_jax.diffusion.process import Prediction, from_eps, from_x_0
from ddpm_jax.diffusion.samplers.loop import make_sample_fn, sample, visits_of, walk

SCHEDULE = schedules.linear()
SAMPLERS = {
    "fixed_small": samplers.ddpm(SCHEDULE),
    "fixed_large": samplers.ddpm(SCHEDULE, "fixed_large"),
    "ddim": samplers.ddim(SCHEDULE),
    "ddim, eta 0.5": samplers.ddim(SCHEDULE, 0.5),
    "dpmpp_2m": samplers.dpmpp_2m(SCHEDULE),
    "dpmpp_2m, eta 1": samplers.dpmpp_2m(SCHEDULE, 1.0),
    "dpmpp_3m": samplers.dpmpp_3m(SCHEDULE),
    "dpmpp_3m, eta 1": samplers.dpmpp_3m(SCHEDULE, 1.0),
    "unipc": samplers.unipc(SCHEDULE),
    "heun": samplers.heun(SCHEDULE),
    "heun, churn 0.1": samplers.heun(SCHEDULE, 0.1),
    "plms": samplers.plms(SCHEDULE),
    "probability_flow": samplers.probability_flow(SCHEDULE),
    "reverse_sde": samplers.reverse_sde(SCHEDULE),
}


def network(params, x, index, cond=None, dropout_keys=None):
    """A smooth function that depends on everything it is given."""
    shift = 0.0 if cond is None else cond[:, None, None, None]
    return jnp.tanh(params * x + shift) * (1 + index[:, None, None, None] / 1000)


def make(num_steps, sampler=None):
    return make_sample_fn(
        network,
        SCHEDULE,
        sampler or samplers.ddim(SCHEDULE, 0.5),
        timesteps.trailing(SCHEDULE, num_steps),
        (4, 6, 3),
        transform=lambda denoiser: denoisers.clip(denoiser, SCHEDULE),
    )


@pytest.mark.parametrize("name", ["fixed_small", "unipc", "heun, churn 0.1", "plms"])
def test_a_walk_may_be_cut_into_parts(name):
    """What a sampler remembers, and the keys of its steps, go on."""
    sampler, times = SAMPLERS[name], timesteps.trailing(SCHEDULE, 12)
    denoiser = denoisers.from_network(network, 0.3, SCHEDULE, "eps")
    keys = jax.random.split(jax.random.key(0), 2)
    x_T = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    whole, _ = jax.jit(lambda x: sample(sampler, denoiser, keys, x, times))(x_T)
    part = jax.jit(lambda *given: walk(sampler, denoiser, keys, *given)[0])
    state = sampler.init(x_T)
    for first in range(0, 12, 4):
        visits = [each[first : first + 4] for each in visits_of(times)]
        state = part(state, tuple(visits))
    np.testing.assert_allclose(state.x, whole, rtol=1e-5, atol=1e-5)


def equations(jaxpr):
    """The number of equations of a program, those of loops and branches included."""
    inner = [
        equations(getattr(part, "jaxpr", part))
        for eqn in jaxpr.eqns
        for value in eqn.params.values()
        for part in (value if isinstance(value, tuple) else (value,))
        if hasattr(getattr(part, "jaxpr", part), "eqns")
    ]
    return len(jaxpr.eqns) + sum(inner)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_program_has_one_size_for_any_number_of_steps(name):
    keys = jax.random.split(jax.random.key(0), 2)
    few, many = (
        jax.make_jaxpr(make(steps, SAMPLERS[name]))(jnp.array(0.5), keys)
        for steps in (10, 1000)
    )
    one_step = jax.make_jaxpr(make(1, SAMPLERS[name]))(jnp.array(0.5), keys)
    assert equations(few.jaxpr) == equations(many.jaxpr) == equations(one_step.jaxpr)
    assert equations(few.jaxpr) > 50 + len(few.jaxpr.eqns)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_compilation_whatever_the_seed(name):
    sample_fn = jax.jit(make(10, SAMPLERS[name]))
    for seed in range(3):
        sample_fn(jnp.array(0.5), jax.random.split(jax.random.key(seed), 2))
    assert sample_fn._cache_size() == 1


def temporary_bytes(function, *args):
    """What the compiled function needs besides its arguments and results."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m"])
def test_memory_does_not_grow_with_the_number_of_steps(name):
    keys = jax.random.split(jax.random.key(0), 2)
    few, many = (
        temporary_bytes(make(steps, SAMPLERS[name]), jnp.array(0.5), keys)
        for steps in (10, 1000)
    )
    assert few == many > 0


def test_an_image_is_the_same_in_any_batch():
    keys, cond = jax.random.split(jax.random.key(0), 6), jnp.arange(6) / 6
    sample_fn, params = jax.jit(make(20)), jnp.array(0.5)
    images = sample_fn(params, keys, cond)
    assert images.shape == (6, 4, 6, 3) and np.all(np.isfinite(images))
    np.testing.assert_allclose(
        images[2:4], sample_fn(params, keys[2:4], cond[2:4]), atol=1e-5
    )
    assert float(jnp.abs(images[0] - images[1]).mean()) > 0.05


def test_the_denoiser_sees_every_time_once():
    """The network is called with t - 1, for each t of the list but the last."""
    times = timesteps.custom(SCHEDULE, [901, 400, 3])

    def spy(params, x, index, cond=None, dropout_keys=None):
        return jnp.broadcast_to(index[:, None], x.shape).astype(x.dtype)

    denoiser = denoisers.from_network(spy, None, SCHEDULE)
    _, seen = sample(
        samplers.ddim(SCHEDULE),
        denoiser,
        jax.random.split(jax.random.key(0), 2),
        jnp.zeros((2, 5)),
        times,
        observe=lambda state, prediction: prediction.eps[0, 0],
    )
    np.testing.assert_array_equal(seen, [900, 399, 2])


def test_observe_decides_what_is_kept():
    x_T, keys = jnp.ones((2, 5)), jax.random.split(jax.random.key(0), 2)
    denoiser = lambda x, t: Prediction(0 * x, x)
    times = timesteps.trailing(SCHEDULE, 7)
    args = (samplers.ddim(SCHEDULE), denoiser, keys, x_T, times)
    x_0, nothing = sample(*args)
    assert nothing is None
    x_0_again, xs = sample(*args, observe=lambda state, prediction: state.x)
    assert xs.shape == (7, 2, 5)
    np.testing.assert_array_equal(xs[-1], x_0)
    np.testing.assert_array_equal(x_0_again, x_0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_flow_through_sampling(x64, name):
    """To the parameters and to x_T; against central differences."""
    keys = jax.random.split(jax.random.key(0), 2)
    x_T, weights = jax.random.normal(jax.random.key(1), (2, 2, 3, 2, 1))
    times = timesteps.trailing(SCHEDULE, 6)

    def loss(params, x_T):
        denoiser = lambda x, t: from_x_0(SCHEDULE, x, t, jnp.tanh(params * x) / 2)
        x_0, _ = sample(SAMPLERS[name], denoiser, keys, x_T, times)
        return jnp.sum(weights * x_0)

    loss = jax.jit(loss)
    of_params, of_x_T = jax.grad(loss, (0, 1))(0.7, x_T)
    assert np.all(np.isfinite(of_x_T)) and abs(float(of_params)) > 1e-3
    difference = (loss(0.7 + 1e-5, x_T) - loss(0.7 - 1e-5, x_T)) / 2e-5
    np.testing.assert_allclose(of_params, difference, rtol=1e-6)
    step = 1e-5 * weights
    difference = (loss(0.7, x_T + step) - loss(0.7, x_T - step)) / 2e-5
    np.testing.assert_allclose(jnp.sum(of_x_T * weights), difference, rtol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_gradients_steer_an_image_to_a_target(name):
    """Descent on x_T alone: the last image comes near to another one."""
    times, keys = timesteps.trailing(SCHEDULE, 10), jax.random.split(jax.random.key(0))

    def denoiser(x_t, t):
        """That of N(0, 0.5^2), bent."""
        alpha, sigma = schedules.alpha_sigma(SCHEDULE, t)
        x_0 = x_t * alpha / 4 / (alpha**2 / 4 + sigma**2)
        return from_x_0(SCHEDULE, x_t, t, x_0 + 0.1 * jnp.sin(2 * x_t))

    x_T, target = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 1))
    target = jnp.tanh(target) / 2

    @jax.jit
    @jax.value_and_grad
    def loss(x_T):
        x_0, _ = sample(SAMPLERS[name], denoiser, keys, x_T, times)
        return jnp.sum((x_0 - target) ** 2)

    losses = []
    for _ in range(10):
        value, slope = loss(x_T)
        losses.append(float(value))
        x_T = x_T - slope
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "unipc", "heun"])
def test_a_gradient_keeps_of_a_step_its_state_alone(name):
    """Not the network's activations, 2500 times as large."""
    state, hidden = (2, 8), 20_000
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(x_T, weights, num_steps):
        network = lambda x: jnp.tanh(jnp.tanh(x @ weights) @ weights.T)
        denoiser = lambda x, t: from_eps(SCHEDULE, x, t, network(x))
        times = timesteps.trailing(SCHEDULE, num_steps)
        return sample(SAMPLERS[name], denoiser, keys, x_T, times)[0].sum()

    few, many = (
        temporary_bytes(
            jax.grad(lambda x, w, n=n: loss(x, w, n)),
            jnp.zeros(state),
            jnp.zeros((8, hidden)),
        )
        for n in (10, 40)
    )
    state_bytes, activation_bytes = 4 * 2 * 8, 4 * 2 * hidden
    assert few > activation_bytes
    assert 0 < (many - few) / 30 < 4 * state_bytes < activation_bytes / 100
