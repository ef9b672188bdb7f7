"""Which noise levels training sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import densities, losses, schedules

SCHEDULE = schedules.log_snr_linear(1000)
IDS = jnp.arange(20_000, dtype=jnp.uint32)
KEY = jax.random.key(5)


def drawn(density, schedule=SCHEDULE):
    keys = jax.random.split(KEY, len(IDS))
    return jax.vmap(density.draw, (None, 0))(schedule, keys)


def levels(density, schedule=SCHEDULE):
    return np.asarray(schedules.log_snr(schedule, drawn(density, schedule)))


NORMAL = ["edm", "edm2", "ect", "logit_normal", "jit"]


@pytest.mark.parametrize("name", NORMAL)
def test_those_of_the_papers_are_normal(name):
    """Their means and deviations, of what lies between the ends of a wide schedule."""
    wide = schedules.log_snr_linear(1000, 1e-6, 1e6)
    mean, std = densities.DENSITIES[name].args
    found = levels(densities.DENSITIES[name](), wide)
    np.testing.assert_allclose(found.mean(), mean, atol=4 * std / len(IDS) ** 0.5)
    np.testing.assert_allclose(found.std(), std, rtol=4 / (2 * len(IDS)) ** 0.5)


def test_edm_is_a_normal_of_the_logarithm_of_the_noise_level():
    log_sigma = -levels(densities.DENSITIES["edm"]()) / 2
    np.testing.assert_allclose(np.median(log_sigma), -1.2, atol=0.04)
    np.testing.assert_allclose(np.std(log_sigma), 1.2, atol=0.03)


def test_nothing_heaps_up_at_the_ends():
    """Of a normal whose half lies beyond the schedule, none is drawn at its end."""
    found = levels(densities.normal(12.5, 2.0))
    assert (found < SCHEDULE.log_snr[1] - 1e-3).mean() > 0.998


def test_levels_are_even_in_the_log_snr():
    cosine = schedules.cosine(100)
    found = levels(densities.uniform_log_snr(), cosine)
    low, high = cosine.log_snr[-1], cosine.log_snr[1]
    np.testing.assert_allclose(np.mean(found), (low + high) / 2, atol=0.15)
    counts, _ = np.histogram(found, 10, (low, high))
    assert abs(counts - 2000).max() < 5 * 2000**0.5


@pytest.mark.parametrize("name", [n for n in densities.DENSITIES if n != "normal"])
def test_what_is_drawn_is_the_quantile_of_a_uniform_number(name):
    density = densities.DENSITIES[name]()
    u = (np.arange(1000) + 0.5) / 1000
    even = np.asarray(density.quantile(SCHEDULE, jnp.asarray(u, jnp.float32)))
    found = np.sort(np.asarray(drawn(density)))
    falls = even[0] > even[-1]  # as times do with λ
    share = np.searchsorted(found, even, side="left" if falls else "right") / len(IDS)
    # Kolmogorov and Smirnov's distance, of one in a million, and a whole time's share.
    assert np.abs(share - (1 - u if falls else u)).max() < 0.019 + 1e-3
    assert even.min() >= 1 and even.max() <= 1000


@pytest.mark.parametrize("name", [n for n in densities.DENSITIES if n != "normal"])
def test_schedules_that_end_in_noise_have_no_nan(name):
    schedule = schedules.zero_terminal_snr(schedules.cosine(50))
    density = densities.DENSITIES[name]()
    assert np.isfinite(np.asarray(drawn(density, schedule), np.float32)).all()
    if name != "uniform":
        assert np.isfinite(levels(density, schedule)).all()


def test_floating_times_next_to_pure_noise():
    """λ is -inf at T alone, and at T - 1 it is the table's."""
    schedule = schedules.zero_terminal_snr(schedules.cosine(50))
    found = schedules.log_snr(schedule, jnp.array([48.5, 49.0, 49.5, 50.0]))
    assert np.isfinite(found[:2]).all() and np.isneginf(found[2:]).all()
    np.testing.assert_allclose(found[1], schedule.log_snr[49], rtol=1e-6)


def test_successive_examples_are_spread_evenly():
    """Of any n successive ids, each nth of [0, 1] has one to within a few."""
    for first, num in ((0, 64), (12_345, 100), (2**32 - 30, 64)):
        ids = (np.arange(first, first + num) % 2**32).astype(np.uint32)
        u = np.sort(np.asarray(densities.spread(KEY, jnp.asarray(ids))))
        gaps = np.diff(np.append(u, u[0] + 1))
        assert gaps.max() < 3 / num, (first, num)
    again = densities.spread(jax.random.key(6), IDS[:64])
    assert np.abs(again - densities.spread(KEY, IDS[:64])).min() > 1e-4


def batch(num, first=0):
    images = jax.random.normal(jax.random.key(0), (256, 2, 2, 1))[first : first + num]
    return {"image": images, "id": jnp.arange(first, first + num, dtype=jnp.uint32)}


def test_a_stratified_loss_varies_less_and_does_not_depend_on_its_batch():
    apply = lambda params, x_t, index, *_: 0 * x_t  # the error of v varies with t alone
    variances = []
    for stratified in (False, True):
        loss_fn = losses.simple(
            apply, SCHEDULE, "x_0", densities.uniform(), lambda log_snr: log_snr / 4,
            stratified=stratified,
        )  # fmt: skip
        data = {**batch(64), "image": jnp.ones((64, 2, 2, 1))}
        found = [float(loss_fn(None, data, jax.random.key(i))[0]) for i in range(40)]
        variances.append(np.var(found))
    assert variances[1] < variances[0] / 20, variances
    whole = loss_fn(None, batch(64), KEY)[0]
    parts = [loss_fn(None, batch(16, first), KEY)[0] for first in range(0, 64, 16)]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-5)


def test_the_density_of_old_runs_draws_as_ever():
    """Whole times, each from its example's own key: the same as before, bit for bit."""
    keys = jax.random.split(KEY, 100)
    old = jax.vmap(lambda key: jax.random.randint(key, (), 1, 1001))(keys)
    new = jax.vmap(densities.uniform().draw, (None, 0))(SCHEDULE, keys)
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("std", [0.0, -1.0, float("inf"), float("nan")])
def test_a_normal_needs_a_deviation(std):
    with pytest.raises(ValueError, match="std must be positive"):
        densities.normal(0.0, std)
