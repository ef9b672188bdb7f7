"""The variational bound: laws that need no oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bound, process, schedules, timesteps

SCHEDULE = schedules.cosine(40)
TIMES = timesteps.trailing(SCHEDULE, 40)
KEYS = jax.random.split(jax.random.key(0), 8)
IMAGES = jnp.round(127.5 + 40 * jax.random.normal(jax.random.key(1), (8, 4, 4, 1)))
IMAGES = IMAGES / 127.5 - 1


def apply(params, x, index, cond, keys):
    return 0.9 * jnp.tanh(x) + (0 if cond is None else 0.1 * cond[:, None, None, None])


def scored(chunk=1, images=IMAGES, keys=KEYS, cond=None, times=TIMES, **settings):
    bound_fn = bound.make_bound(apply, SCHEDULE, times, chunk=chunk, **settings)
    return jax.jit(bound_fn)(None, keys, images, cond)


def test_chunks_and_batches_change_nothing():
    whole = scored()
    assert whole.steps.shape == (8, 40) and whole.prior.shape == (8,)
    for part in (scored(chunk=8), scored(images=IMAGES[2:4], keys=KEYS[2:4])):
        rows = slice(None) if len(part.prior) == 8 else slice(2, 4)
        np.testing.assert_allclose(part.steps, whole.steps[rows], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(part.prior, whole.prior[rows], rtol=1e-5)


def test_labels_reach_the_network():
    assert not np.allclose(scored(cond=jnp.arange(8)).steps[1:], scored().steps[1:])


def test_what_a_network_predicts_does_not_matter():
    """One denoiser, said as eps, x_0 and v, has one bound."""

    def saying(predicts):
        def network(params, x, index, *_):
            t = index + 1
            found = process.from_eps(SCHEDULE, x, t, apply(None, x, index, None, None))
            v = process.velocity(SCHEDULE, found.x_0, t, found.eps)
            return {"eps": found.eps, "x_0": found.x_0, "v": v}[predicts]

        fn = bound.make_bound(network, SCHEDULE, TIMES, predicts, "fixed_large")
        return jax.jit(fn)(None, KEYS, IMAGES).steps

    for predicts in ("x_0", "v"):
        np.testing.assert_allclose(saying(predicts), saying("eps"), rtol=1e-3)


def test_knowing_the_image_costs_the_decoder_only():
    """Exact x_0 and posterior variance: every KL is 0, the decoder is certain."""
    knowing = bound.make_bound(lambda *_: IMAGES, SCHEDULE, TIMES, predicts="x_0")
    terms = knowing(None, KEYS, IMAGES)
    np.testing.assert_allclose(terms.steps[:, :-1], 0, atol=1e-6)
    assert np.all(terms.steps[:, -1] >= 0) and np.all(terms.steps[:, -1] < 9)


def test_a_uniform_decoder_costs_eight_bits():
    """256 values that are equally likely are 8 bits a pixel."""
    x = jnp.arange(256) / 127.5 - 1
    log_p = bound.log_discretized(x, 0 * x, 0 * x + 1.0)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=1e-5)  # a distribution
    flat = bound.log_discretized(x[1:-1], 0 * x[1:-1], 0 * x[1:-1] + 6.0)
    assert np.ptp(flat) < 1e-2


def test_prior_of_data_that_is_noise():
    """x_T ~ N(alpha x_0, sigma^2): nothing is left of x_0 = 0 where sigma is 1."""
    zero_snr = schedules.zero_terminal_snr(SCHEDULE)
    np.testing.assert_allclose(bound.prior(zero_snr, 0 * IMAGES, 40), 0, atol=1e-7)


def test_refusals():
    with pytest.raises(ValueError, match="unknown variance 'small'"):
        scored(variance="small")
    with pytest.raises(ValueError, match="at least two steps"):
        scored(times=np.array([40, 0], np.int32))
    with pytest.raises(ValueError, match="chunk must divide the 40 steps"):
        scored(chunk=7)
    with pytest.raises(ValueError, match="chunk must divide the 40 steps, got -1"):
        scored(chunk=-1)
    with pytest.raises(ValueError, match="needs a network with learned_variance"):
        scored(variance="learned_range")
