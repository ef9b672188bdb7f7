"""Guidance: what each method makes of its predictions, and what it asks for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Counter, coefficients, image_keys, normal, pixels

from ddpm_jax.diffusion import (
    denoisers,
    guidance,
    inverse,
    process,
    samplers,
    schedules,
    timesteps,
)
from ddpm_jax.diffusion.samplers.loop import sample

SCHEDULE = schedules.linear()
NULL = 10
X = normal((6, 4, 4, 1), 0)
LABELS = jnp.array([0, 3, 9, 1, 1, 7])
TIMES = jnp.array([1, 10, 100, 500, 900, 1000])
HIDDEN = jnp.arange(16).reshape(4, 4, 1) % 3 == 0


def network(params, x, index, cond=None, dropout_keys=None):
    """Says cond / 10 of the variance, and something of the image and cond and time."""
    label, index = (
        v.astype(x.dtype)[:, None, None, None] + 0 * x for v in (cond, index)
    )
    label /= NULL
    eps = jnp.tanh(x + label * x**2) + jnp.sin(index) / 10
    return jnp.concatenate([eps, 2 * label - 1], axis=-1)


def small(params, x, index, cond, dropout_keys):
    """Another network, which says nothing of the variance."""
    return 0.8 * x + cond.astype(x.dtype)[:, None, None, None] / 9


DENOISER = denoisers.from_network(network, None, SCHEDULE)
WEAKER = denoisers.from_network(small, None, SCHEDULE)


def log_prob(x, t, cond):
    return -jnp.sum((x - cond[:, None, None, None] / 10) ** 2, axis=(1, 2, 3)) / 3


def within(low, high):
    return guidance.within(
        guidance.guide(DENOISER, 3.0, NULL), DENOISER, SCHEDULE, low, high
    )


def level(t):
    return float(jnp.exp(-schedules.log_snr(SCHEDULE, t) / 2))


def assert_same(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b
    )


@pytest.mark.parametrize("scale, labels", [(1, LABELS), (0.0, jnp.full(6, NULL))])
def test_a_scale_of_1_is_conditional_and_0_unconditional_at_one_call(scale, labels):
    counter = Counter()
    result = guidance.guide(counter(DENOISER), scale, NULL)(X, 500, LABELS)
    assert counter.read() == 6
    assert_same(result, DENOISER(X, 500, labels))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_extrapolates_along_the_line(scale):
    counter = Counter()
    result = guidance.guide(counter(DENOISER), scale, NULL)(X, 500, LABELS)
    assert counter.read() == 12
    null, cond = DENOISER(X, 500, jnp.full(6, NULL)), DENOISER(X, 500, LABELS)
    for n, c, guided in zip(null[:2], cond[:2], result[:2], strict=True):
        np.testing.assert_allclose(guided, n + scale * (c - n), rtol=1e-4, atol=1e-4)


def test_a_traced_scale_is_the_same_line():
    for scale in (0.0, 1.0, 2.0):
        traced = jax.jit(lambda s: guidance.guide(DENOISER, s, NULL)(X, TIMES, LABELS))
        expected = guidance.guide(DENOISER, scale, NULL)(X, TIMES, LABELS)
        assert_same(traced(scale)[:2], expected[:2], 1e-4)


@pytest.mark.parametrize("scale", [0, 2.0])
def test_labels_of_numpy_are_as_good(scale):
    """Of 64 bits, which JAX has not: no warning, which is an error here."""
    guided = guidance.guide(DENOISER, scale, NULL)
    assert_same(guided(X, 500, np.asarray(LABELS, np.int64)), guided(X, 500, LABELS))


def test_pairs_are_interleaved():
    """Each image stays beside its pair: a sharded batch needs no communication."""
    seen = []

    def denoiser(*given):
        seen.append(given)
        return process.Prediction(given[0], given[0])

    guidance.guide(denoiser, 2.0, NULL)(X, TIMES, LABELS)
    for pair, strong, weak in zip(
        seen[0], (X, TIMES, LABELS), (X, TIMES, jnp.full(6, NULL)), strict=True
    ):
        np.testing.assert_array_equal(pair[::2], strong)
        np.testing.assert_array_equal(pair[1::2], weak)


METHODS = {
    "clip": lambda d, s: denoisers.clip(d, s),
    "threshold": lambda d, s: denoisers.threshold(d, s, 90.0),
    "guide": lambda d, s: guidance.guide(d, 3.0, NULL),
    "guide, one call": lambda d, s: guidance.guide(d, 1, NULL),
    "guide_rescaled": lambda d, s: guidance.guide_rescaled(d, s, 3.0, NULL),
    "autoguide": lambda d, s: guidance.autoguide(
        d, denoisers.from_network(small, None, s), 2.0
    ),
    "classifier_guide": lambda d, s: guidance.classifier_guide(d, s, log_prob, 2.0),
    "within": lambda d, s: guidance.within(
        guidance.guide(d, 3.0, NULL), d, s, 0.1, 9.0
    ),
    "replace": lambda d, s: inverse.replace(
        d, s, inverse.visible(HIDDEN), jnp.where(HIDDEN, 0.0, X)
    ),
    "pseudoinverse_guide": lambda d, s: inverse.pseudoinverse_guide(
        d, s, inverse.downsampled(2), X[:, ::2, ::2]
    ),
    "all of them": lambda d, s: denoisers.clip(
        guidance.classifier_guide(
            guidance.guide_rescaled(d, s, 3.0, NULL), s, log_prob
        ),
        s,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_x_0_and_eps_agree_and_a_learned_variance_rides_along(x64, name):
    """x_t = alpha x_0 + sigma eps; and the variance is the condition's."""
    schedule = schedules.linear()
    denoiser = denoisers.from_network(network, None, schedule)
    wrapped, x_t = METHODS[name](denoiser, schedule), 2.0 * jnp.asarray(X, float)
    label = np.broadcast_to((LABELS / NULL)[:, None, None, None], X.shape)
    for t in (500,) if name == "within" else (500, TIMES):
        result = jax.jit(wrapped)(x_t, t, LABELS)
        again = process.diffuse(schedule, result.x_0, t, result.eps)
        np.testing.assert_allclose(again, x_t, atol=1e-9)
        np.testing.assert_allclose(result.fraction, label, atol=1e-12)
        if name != "guide, one call":
            assert not np.allclose(result.x_0, denoiser(x_t, t, LABELS).x_0, rtol=1e-2)


BATCHED = [name for name in METHODS if name != "within"]


@pytest.mark.parametrize("name", BATCHED)
def test_a_time_for_each_image_is_its_own(x64, name):
    """Image i at time t_i is what it is where the whole batch is at t_i."""
    schedule, x_t = schedules.linear(), jnp.asarray(X, float)
    wrapped = METHODS[name](denoisers.from_network(network, None, schedule), schedule)
    at_once = jax.jit(wrapped)
    each = at_once(x_t, TIMES, LABELS)
    for i in (0, 3, 5):
        one = at_once(x_t, int(TIMES[i]), LABELS)
        np.testing.assert_allclose(each.x_0[i], one.x_0[i], rtol=1e-9, atol=1e-9)


def test_rescaling_moves_the_deviation_to_that_of_the_condition(x64):
    """Lin et al. (2024), Eq. 15-16: (1 - φ) of the guided and φ of the conditional."""
    schedule, x_t = schedules.linear(), jnp.asarray(X, float)
    denoiser = denoisers.from_network(network, None, schedule)
    deviation = lambda prediction: np.std(prediction.x_0, axis=(1, 2, 3))
    guided = guidance.guide(denoiser, 3.0, NULL)(x_t, TIMES, LABELS)
    strong = deviation(denoiser(x_t, TIMES, LABELS))
    assert np.all(np.abs(deviation(guided) / strong - 1) > 0.005)
    for strength in (0.0, 0.7, 1.0):
        rescaled = guidance.guide_rescaled(denoiser, schedule, 3.0, NULL, strength)
        result = rescaled(x_t, TIMES, LABELS)
        expected = (1 - strength) * deviation(guided) + strength * strong
        np.testing.assert_allclose(deviation(result), expected, rtol=1e-10)
        if strength == 0:
            assert_same(result, guided, 1e-10)


def test_autoguidance_extrapolates_from_the_weaker_model():
    both = (Counter(), Counter())
    for scale, calls in ((1, (6, 0)), (1.0, (6, 0)), (0.0, (6, 6)), (2.5, (6, 6))):
        denoiser = guidance.autoguide(both[0](DENOISER), both[1](WEAKER), scale)
        result = denoiser(X, 500, LABELS)
        assert tuple(counter.read() for counter in both) == calls
        strong, weak = DENOISER(X, 500, LABELS), WEAKER(X, 500, LABELS)
        for s, w, guided in zip(strong[:2], weak[:2], result[:2], strict=True):
            np.testing.assert_allclose(guided, w + scale * (s - w), 1e-4, 1e-4)


def test_an_interval_holds_its_upper_end_and_not_its_lower():
    guided = guidance.guide(DENOISER, 3.0, NULL)
    for t, inside in ((300, False), (301, True), (500, True), (501, False)):
        result = within(level(300), level(500))(X, t, LABELS)
        expected = (guided if inside else DENOISER)(X, t, LABELS)
        assert_same(result, expected, 1e-4)


def test_an_interval_can_be_open_on_both_sides():
    for t in (1, 1000):
        guided = guidance.guide(DENOISER, 3.0, NULL)
        result = within(0.0, float("inf"))(X, t, LABELS)
        assert_same(result, guided(X, t, LABELS), 1e-4)


@pytest.mark.parametrize("low, high", [(2.0, 1.0), (1.0, 1.0), (-0.1, 1.0)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low < high"):
        within(low, high)


def test_outside_the_interval_sampling_asks_for_half_as_much():
    """Kynkäänniemi et al. (2024): what guidance costs is paid within only."""
    times, counter = timesteps.trailing(SCHEDULE, 20), Counter()
    counted = counter(DENOISER)
    denoiser = guidance.within(
        guidance.guide(counted, 3.0, NULL), counted, SCHEDULE, 0.3, 3.0
    )
    conditioned = denoisers.condition(denoiser, LABELS)
    sampler, keys = samplers.ddim(SCHEDULE), image_keys(6)
    jax.jit(lambda x: sample(sampler, conditioned, keys, x, times)[0])(X)
    noise = np.exp(-SCHEDULE.log_snr[times[:-1]] / 2)
    inside = int(np.sum((noise > 0.3) & (noise <= 3.0)))
    assert 5 < inside < 15
    assert counter.read() == 6 * (20 + inside)


STD = 0.4
MEANS = [[0.7, -0.7, 0.7, 0.7], [-0.7, -0.7, 0.0, 0.7]]  # of two equal classes


def of_class(schedule, cond):
    """The exact denoiser of each image's class."""
    means = jnp.asarray(MEANS)[cond].reshape(-1, 2, 2, 1)
    return pixels(schedule, means, STD)


def two_classes(schedule):
    """The exact denoiser of both classes together, and log p(cond | x_t)."""

    def log_shares(x_t, t):
        """Of N(x_t; alpha mean_k, alpha^2 STD^2 + sigma^2), [batch, 2]."""
        alpha, sigma = coefficients(schedule, t, x_t)
        means = (alpha * jnp.reshape(jnp.asarray(m), (1, 2, 2, 1)) for m in MEANS)
        variance = alpha**2 * STD**2 + sigma**2
        logits = [-((x_t - mean) ** 2) / (2 * variance) for mean in means]
        return jax.nn.log_softmax(jnp.stack(logits, 1).sum(axis=(2, 3, 4)))

    def mixture(x_t, t, cond=None):
        shares = jnp.exp(log_shares(x_t, t))[:, :, None, None, None]
        one, two = (of_class(schedule, jnp.array([k]))(x_t, t) for k in (0, 1))
        return jax.tree.map(lambda a, b: shares[:, 0] * a + shares[:, 1] * b, one, two)

    def log_prob(x_t, t, cond):
        return jnp.take_along_axis(log_shares(x_t, t), cond[:, None], axis=1)[:, 0]

    return mixture, log_prob


def test_the_exact_classifier_makes_the_exact_conditional_denoiser(x64):
    """Bayes: ∇ log p(x_t | k) = ∇ log p(x_t) + ∇ log p(k | x_t)."""
    schedule, cond = schedules.linear(), jnp.array([0, 1, 1, 0, 1, 0])
    x_t, (mixture, log_prob) = jnp.asarray(X[:, :2, :2], float), two_classes(schedule)
    guided = guidance.classifier_guide(mixture, schedule, log_prob)
    for t in (1, 400, TIMES):
        expected = of_class(schedule, cond)(x_t, t)
        assert_same(guided(x_t, t, cond), expected, 1e-9)
    apart = mixture(x_t, 400).x_0 - of_class(schedule, cond)(x_t, 400).x_0
    assert float(jnp.abs(apart).max()) > 0.2


def test_the_scale_of_the_classifier_is_that_of_its_gradient(x64):
    schedule, cond = schedules.linear(), jnp.array([0, 1, 1, 0, 1, 0])
    x_t, (mixture, log_prob) = jnp.asarray(X[:, :2, :2], float), two_classes(schedule)
    plain, one, three = (
        guidance.classifier_guide(mixture, schedule, log_prob, scale)(x_t, 400, cond)
        for scale in (0.0, 1.0, 3.0)
    )
    assert_same(plain, mixture(x_t, 400), 1e-12)
    for p, a, b in zip(plain[:2], one[:2], three[:2], strict=True):
        np.testing.assert_allclose(b - p, 3 * (a - p), rtol=1e-9, atol=1e-12)


def test_sampling_under_the_exact_classifier_draws_the_class():
    times, (mixture, log_prob) = (
        timesteps.trailing(SCHEDULE, 100),
        two_classes(SCHEDULE),
    )
    cond = jnp.arange(1024) % 2
    denoiser = denoisers.condition(
        guidance.classifier_guide(mixture, SCHEDULE, log_prob), cond
    )
    noise, keys = normal((1024, 2, 2, 1)), image_keys(1024)
    x_0, _ = sample(samplers.ddim(SCHEDULE), denoiser, keys, noise, times)
    for k, mean in enumerate(MEANS):
        # Five standard errors, and the first order of 100 steps.
        mine = x_0[k::2].reshape(512, 4)
        np.testing.assert_allclose(mine.mean(axis=0), mean, atol=5 * STD / 22 + 0.02)
        np.testing.assert_allclose(mine.std(axis=0), STD, rtol=5 / 32 + 0.05)


def test_where_all_is_noise_a_gradient_says_nothing():
    """At alpha_T = 0 the score is that of the noise alone, whatever y is."""
    schedule = schedules.zero_terminal_snr(schedules.linear())
    v = denoisers.from_network(lambda p, x, *_: 0.1 * x, None, schedule, "v")
    wrapped = guidance.classifier_guide(v, schedule, log_prob)
    assert_same(wrapped(X, 1000, LABELS), v(X, 1000))
    moved = wrapped(X, 999, LABELS).x_0 - v(X, 999).x_0
    assert float(jnp.abs(moved).max()) > 0.1


def test_an_even_picture_can_be_guided():
    flat = lambda x_t, t, cond: process.from_x_0(SCHEDULE, x_t, t, 0 * x_t + 0.5)
    wrapped = guidance.guide_rescaled(flat, SCHEDULE, 3.0, NULL, 1.0)
    assert np.all(np.isfinite(wrapped(X, 500, LABELS).x_0))


def test_guidance_needs_a_condition():
    with pytest.raises(ValueError, match="needs a condition"):
        guidance.guide(DENOISER, 3.0, NULL)(X, 500, None)
