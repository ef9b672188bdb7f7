"""The simple loss, the hybrid, and the bound as a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bound, losses, process, schedules, timesteps

SCHEDULE = schedules.cosine(50)
KEY = jax.random.key(3)


def batch(num, first=0):
    images = jax.random.normal(jax.random.key(0), (64, 4, 4, 1))[first : first + num]
    return {"image": images, "id": jnp.arange(first, first + num, dtype=jnp.uint32)}


def test_a_perfect_network_has_no_loss():
    """Knowing x_0, the target can be had from x_t; t and eps are drawn inside."""
    for predicts, convert in {
        "eps": lambda x_t, t, x_0: process.from_x_0(SCHEDULE, x_t, t, x_0).eps,
        "x_0": lambda x_t, t, x_0: x_0,
        "v": lambda x_t, t, x_0: process.velocity(
            SCHEDULE, x_0, t, process.from_x_0(SCHEDULE, x_t, t, x_0).eps
        ),
    }.items():
        data = batch(64)

        def apply(params, x_t, index, cond, keys, data=data, convert=convert):
            return convert(x_t, index + 1, data["image"])

        loss, metrics = losses.simple(apply, SCHEDULE, predicts)(None, data, KEY)
        assert float(loss) < 1e-6, predicts
        assert metrics["loss"] == loss


def test_zero_network_has_the_targets_variance():
    data = {**batch(64), "image": jax.random.normal(KEY, (64, 16, 16, 1))}
    for predicts in ("eps", "x_0", "v"):  # each of unit variance, as the data are
        loss, _ = losses.simple(lambda p, x, *_: 0 * x, SCHEDULE, predicts)(
            None, data, KEY
        )
        np.testing.assert_allclose(loss, 1, atol=5 * np.sqrt(2 / data["image"].size))


def test_the_loss_of_an_example_does_not_depend_on_its_batch():
    loss_fn = losses.simple(lambda p, x, *_: jnp.tanh(x), SCHEDULE)
    whole = loss_fn(None, batch(8), KEY)[0]
    parts = [loss_fn(None, batch(2, first), KEY)[0] for first in (0, 2, 4, 6)]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-5)


@pytest.mark.parametrize(
    "make", [losses.simple, losses.hybrid, losses.vlb], ids=lambda make: make.__name__
)
def test_the_loss_of_each_quarter_of_the_times(make):
    """The loss here grows with the time; together they are the whole."""
    shown, data = {}, batch(64)

    def apply(params, x_t, index, cond, keys):
        shown["t"] = index + 1
        wrong = (1 + index / 10)[:, None, None, None] * jnp.ones_like(x_t)
        learned = [] if make is losses.simple else [jnp.zeros_like(x_t)]
        return jnp.concatenate([wrong, *learned], axis=-1)

    loss, metrics = make(apply, SCHEDULE)(None, data, KEY)
    parts = [metrics[f"loss_by_t/q{i}"] for i in range(4)]
    bounds = [0, 12.5, 25, 37.5, 50]  # of 50 times
    found = np.histogram(shown["t"], np.add(bounds, 0.01))[0] / 64
    np.testing.assert_allclose([weight for _, weight in parts], found)
    np.testing.assert_allclose(sum(share for share, _ in parts), loss, rtol=1e-5)
    if make is losses.simple:
        means = [share / weight for share, weight in parts]
        assert means == sorted(means)


def test_times_are_uniform_and_noise_is_new_at_each_key():
    """Indices 0 ... T - 1, that is t = 1 ... T, each as often; other keys, others."""
    seen = []
    data = {"image": jnp.zeros((20_000, 1, 1, 1)), "id": jnp.arange(20_000)}
    for seed in (0, 1):
        losses.simple(lambda p, x, index, *_: seen.append((index, x)) or x, SCHEDULE)(
            None, data, jax.random.key(seed)
        )
    counts = np.bincount(seen[0][0], minlength=50)
    assert len(counts) == 50
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 95  # 49 degrees of freedom: p = 1e-4
    assert np.mean(seen[0][0] == seen[1][0]) < 0.05
    assert np.abs(np.corrcoef(seen[0][1].ravel(), seen[1][1].ravel())[0, 1]) < 0.05


def test_labels_and_dropout_keys_reach_the_network():
    seen = []
    data = {**batch(4), "label": jnp.array([1, 2, 3, 4])}
    losses.simple(lambda p, x, i, cond, keys: seen.append((cond, keys)) or x, SCHEDULE)(
        None, data, KEY
    )
    np.testing.assert_array_equal(seen[0][0], data["label"])
    assert len({bytes(np.asarray(jax.random.key_data(k))) for k in seen[0][1]}) == 4


def test_eps_at_zero_terminal_snr_is_refused():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        losses.simple(lambda *_: None, schedules.zero_terminal_snr(SCHEDULE), "eps")


def learned(params, x, *_):
    """A network with a learned variance, one parameter for each half."""
    mean, between = params
    return jnp.concatenate([mean * x, 0 * x + between], axis=-1)


def test_hybrid_teaches_the_variance_by_the_bound_and_the_mean_by_the_error():
    params = (jnp.array(0.5), jnp.array(0.2))
    data = batch(8)
    of = lambda loss_fn: jax.grad(lambda p: loss_fn(p, data, KEY)[0])(params)
    alone = lambda p, x, *_: p[0] * x
    mean, between = of(losses.hybrid(learned, SCHEDULE))
    np.testing.assert_allclose(mean, of(losses.simple(alone, SCHEDULE))[0], rtol=1e-5)
    bound_alone = of(losses.vlb(learned, SCHEDULE))
    np.testing.assert_allclose(between, 1e-3 * bound_alone[1], rtol=1e-5)
    assert np.all(np.isfinite([*bound_alone])) and bound_alone[0] != 0


def test_losses_refuse_what_they_would_leave_untrained():
    data, params = batch(2), (jnp.array(0.5), jnp.array(0.2))
    with pytest.raises(ValueError, match="does not train a learned variance"):
        losses.simple(learned, SCHEDULE)(params, data, KEY)
    with pytest.raises(ValueError, match="leaves a learned one untrained"):
        losses.vlb(learned, SCHEDULE, variance="fixed_small")(params, data, KEY)
    with pytest.raises(ValueError, match="needs a network with learned_variance"):
        losses.hybrid(lambda p, x, *_: x, SCHEDULE)(params, data, KEY)
    with pytest.raises(ValueError, match="vlb_weight must be positive"):
        losses.hybrid(learned, SCHEDULE, vlb_weight=0.0)


def test_the_bound_as_a_loss_is_that_of_the_scorer():
    """Averaged over all times, T terms of one image are its bound, prior aside."""
    schedule, num, few = schedules.linear(20, 1e-2, 0.3), 200_000, 2000
    image = jnp.round(127.5 * jnp.ones((1, 2, 2, 1))) / 127.5 - 1
    apply = lambda p, x, *_: 0.9 * x
    data = {"image": jnp.tile(image, (num, 1, 1, 1)), "id": jnp.arange(num)}
    loss, _ = losses.vlb(apply, schedule, variance="fixed_small")(None, data, KEY)
    bound_fn = bound.make_bound(apply, schedule, timesteps.trailing(schedule, 20))
    scored = bound_fn(None, jax.random.split(KEY, few), data["image"][:few])
    expected = (scored.total() - scored.prior).mean()
    error = np.std(20 * scored.steps) / np.sqrt(num)  # of the mean over drawn times
    assert error < 0.01 * expected
    np.testing.assert_allclose(loss, expected, rtol=0, atol=4 * error)
