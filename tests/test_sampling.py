"""The sampling loop and the functions made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, samplers, schedules, timesteps
from ddpm_jax.diffusion.process import Prediction
from ddpm_jax.diffusion.sampling import make_sample_fn, sample

SCHEDULE = schedules.linear()


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


def equations(jaxpr):
    """The number of equations of a program, those inside loops included."""
    inner = [
        equations(getattr(value, "jaxpr", value))
        for eqn in jaxpr.eqns
        for value in eqn.params.values()
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    ]
    return len(jaxpr.eqns) + sum(inner)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_program_has_one_size_for_any_number_of_steps(variance):
    keys = jax.random.split(jax.random.key(0), 2)
    sampler = samplers.ddpm(SCHEDULE, variance)
    few, many = (
        jax.make_jaxpr(make(steps, sampler))(jnp.array(0.5), keys)
        for steps in (10, 1000)
    )
    assert equations(few.jaxpr) == equations(many.jaxpr) > 50


def test_one_compilation_whatever_the_seed():
    sample_fn = jax.jit(make(10))
    for seed in range(3):
        sample_fn(jnp.array(0.5), jax.random.split(jax.random.key(seed), 2))
    assert sample_fn._cache_size() == 1


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


def test_gradients_flow_through_sampling(x64):
    keys = jax.random.split(jax.random.key(0), 2)
    loss = lambda params: make(5)(params, keys).sum()
    difference = (loss(0.5 + 1e-6) - loss(0.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(loss)(0.5), difference, rtol=1e-6)
