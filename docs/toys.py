"""Distributions whose denoiser is known exactly, and walks of them.

A mixture of Gaussians, noised, is a mixture of Gaussians again, so E[x_0 | x_t] has a
closed form: `Mixture.denoiser` is what a perfect network would say. Points are [batch,
dimensions], as images are [batch, ...]; all else is the library's own code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from ddpm_jax.diffusion import (
    bound,
    densities,
    guidance,
    likelihood,
    samplers,
    schedules,
    timesteps,
)
from ddpm_jax.diffusion.process import Prediction, diffuse, forward_variance, from_x_0
from ddpm_jax.diffusion.weightings import WEIGHTINGS

SCHEDULE = schedules.linear(1000)  # that of Ho et al. 2020


class Mixture(NamedTuple):
    """A mixture of round Gaussians, some of them of one class.

    Attributes:
      weights: of the parts, [parts].
      means: of the parts, [parts, dimensions].
      stds: standard deviations, [parts]; 0 is a single value.
      classes: to which class a part belongs, [parts].
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    classes: np.ndarray

    def draw(self, num, seed=0):
        """Draws points, [num, dimensions], and their classes."""
        random = np.random.default_rng(seed)
        part = random.choice(len(self.weights), num, p=self.weights)
        noise = random.standard_normal((num, self.means.shape[1]))
        points = self.means[part] + self.stds[part, None] * noise
        return jnp.asarray(points, jnp.float32), self.classes[part]

    def denoiser(self, schedule):
        """E[x_0 | x_t] and E[eps | x_t], of a class or, beyond the last, of all."""
        null = self.classes.max() + 1
        means, stds = jnp.asarray(self.means)[None], jnp.asarray(self.stds)[None]

        def denoiser(x_t, t, cond=None):
            alpha, sigma = (
                jnp.reshape(c, (-1, 1)) for c in schedules.alpha_sigma(schedule, t)
            )
            variance = alpha**2 * stds**2 + sigma**2
            away = x_t[:, None] - alpha[..., None] * means
            fit = -jnp.sum(away**2, axis=2) / (2 * variance)
            fit += jnp.log(self.weights)[None] - means.shape[2] / 2 * jnp.log(variance)
            if cond is not None:
                cond = jnp.asarray(cond)[:, None]
                is_of = (cond == self.classes[None]) | (cond == null)
                fit = jnp.where(is_of, fit, -jnp.inf)
            share = jax.nn.softmax(fit, axis=1)[..., None]  # p(part | x_t)
            x_0 = means + (alpha * stds**2 / variance)[..., None] * away
            eps = (sigma / variance)[..., None] * away
            return Prediction(jnp.sum(share * x_0, 1), jnp.sum(share * eps, 1))

        return denoiser

    def density(self, t, x, schedule=SCHEDULE):
        """q(x_t) at points x, [points], of one dimension."""
        mean, std = self._noised(t, schedule)
        away = (np.asarray(x, np.float64)[:, None] - mean) / std
        return (np.exp(-(away**2) / 2) / (std * np.sqrt(2 * np.pi))) @ self.weights

    def quantile(self, t, u, schedule=SCHEDULE):
        """The points below which lie shares u of q(x_t), in one dimension."""
        mean, std = self._noised(t, schedule)
        grid = np.linspace(-6, 6, 40001)
        return np.interp(u, ndtr((grid[:, None] - mean) / std) @ self.weights, grid)

    def distance(self, t, x, schedule=SCHEDULE):
        """How far points lie from q(x_t): the mean way that each has to be moved."""
        x = np.sort(np.ravel(x))
        return float(np.mean(np.abs(x - self.quantile(t, middles(len(x)), schedule))))

    def _noised(self, t, schedule):
        alpha, sigma = (
            np.asarray(c, float) for c in schedules.alpha_sigma(schedule, t)
        )
        return alpha * self.means[:, 0], np.hypot(alpha * self.stds, sigma)


def mixture(weights, means, stds, classes):
    """Makes arrays of lists."""
    means = np.reshape(np.asarray(means, np.float64), (len(weights), -1))
    return Mixture(np.array(weights), means, np.array(stds), np.array(classes))


LINE = mixture([0.25, 0.45, 0.3], [-1.1, 0.1, 1.0], [0.15, 0.25, 0.12], [0, 1, 1])
PLANE = mixture(
    [0.2, 0.2, 0.2, 0.2, 0.2],
    [[-0.9, -0.5], [-0.2, -0.9], [0.9, -0.5], [0.3, 0.1], [-0.3, 0.8]],
    [0.28, 0.2, 0.3, 0.24, 0.3],
    [0, 0, 1, 1, 2],
)


def middles(num):
    """The middles of num equal parts of [0, 1]."""
    return (np.arange(num) + 0.5) / num


def keys_of(num, seed=0):
    """One key for each point."""
    return jax.random.split(jax.random.key(seed), num)


def spread_normal(num):
    """The quantiles of N(0, 1), [num, 1]: a sample of it without chance."""
    return jnp.asarray(ndtri(middles(num))[:, None], jnp.float32)


def normal(num, dimensions=1, seed=1):
    """A sample of N(0, I)."""
    return jax.random.normal(jax.random.key(seed), (num, dimensions))


def chain(x_0, seed=0, schedule=SCHEDULE):
    """The forward process step by step: x_1 ... x_T, [T, batch, dimensions]."""

    def step(x, t):
        beta = forward_variance(schedule, t, t - 1)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), t), x.shape)
        x = jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * noise
        return x, x

    times = jnp.arange(1, schedule.num_steps + 1)
    return jax.jit(lambda x_0: jax.lax.scan(step, x_0, times)[1])(x_0)


def told(x_0, schedule=SCHEDULE):
    """A denoiser that is told the answer."""
    return lambda x_t, t: from_x_0(schedule, x_t, t, x_0)


def walk(sampler, denoiser, x_T, times, seed=0):
    """Where a sampler is after each step, [steps, batch, dimensions]."""

    @jax.jit
    def run(keys, x_T):
        def keep(state, prediction):
            return state.x

        return samplers.sample(sampler, denoiser, keys, x_T, times, observe=keep)[1]

    return np.asarray(run(keys_of(len(x_T), seed), x_T))


def strided(num_steps, eta=0.0, num=4000, seed=0):
    """x_0 of num_steps steps of DDIM with the exact denoiser."""
    times = timesteps.trailing(SCHEDULE, num_steps)
    ddim = samplers.ddim(SCHEDULE, eta)
    return walk(ddim, LINE.denoiser(SCHEDULE), spread_normal(num), times, seed)[-1]


def guided(scale, points, label, num, steps=200, dimensions=1):
    """Points of one class, drawn with classifier-free guidance."""
    denoiser = guidance.guide(
        points.denoiser(SCHEDULE), scale, points.classes.max() + 1
    )
    labels = jnp.full(num, label)
    x_T = spread_normal(num) if dimensions == 1 else normal(num, dimensions)
    times = timesteps.trailing(SCHEDULE, steps)
    ddim = samplers.ddim(SCHEDULE)
    return walk(ddim, lambda x_t, t: denoiser(x_t, t, labels), x_T, times)[-1]


def pixel():
    """One pixel of 256 values, as likely as LINE has them: values and probabilities."""
    values = np.linspace(-1, 1, 256)
    mass = LINE.density(0, values)
    return values, mass / mass.sum()


def entropy():
    """Bits that no code of the pixel can do without."""
    mass = pixel()[1]
    return -float(mass @ np.log2(mass))


def bound_of_pixel(num_steps, draws=4):
    """The variational bound of the pixel on steps even in λ, all its values weighed.

    Returns:
      The schedule, the prior's term, and those of the steps.
    """
    schedule, (values, mass) = schedules.log_snr_linear(num_steps, 5e-4), pixel()
    exact = mixture(mass, values, np.zeros(256), np.zeros(256, int)).denoiser(schedule)

    def apply(params, x_t, index, cond, dropout_keys):  # a network that knows
        flat = x_t.reshape(len(x_t), 1)
        return exact(flat, index + 1).eps.reshape(x_t.shape)

    times = timesteps.trailing(schedule, num_steps)
    score = jax.jit(bound.make_bound(apply, schedule, times))
    x_0 = jnp.asarray(np.repeat(values, draws).reshape(-1, 1, 1, 1), jnp.float32)
    bits = score({}, keys_of(len(x_0)), x_0)
    weights = np.repeat(mass, draws) / draws
    return schedule, float(weights @ bits.prior), weights @ np.asarray(bits.steps)


def log_density_by_ode(x, schedule=SCHEDULE):
    """Returns log q(x_1) at points, by the probability flow with the exact denoiser."""
    exact = LINE.denoiser(schedule)
    score = likelihood.make_likelihood(
        lambda params, x_t, index, cond, keys: exact(x_t, index + 1).eps, schedule
    )
    x = jnp.asarray(np.reshape(x, (-1, 1)), jnp.float32)
    return np.asarray(jax.jit(score)({}, keys_of(len(x)), x).log_density)


TOLD_TIMES = np.array([1000, 600, 300, 100, 0])


def told_walk(eta, num=30000):
    """DDIM in four steps, told x_0: x_T, and x_s after each step."""
    x_0 = jnp.asarray(LINE.quantile(0, middles(num))[:, None], jnp.float32)
    x_T = diffuse(SCHEDULE, x_0, 1000, normal(num))
    ddim = samplers.ddim(SCHEDULE, eta)
    return x_0, x_T, walk(ddim, told(x_0), x_T, TOLD_TIMES)


def noise_of(x_0, x_t, t):
    """The eps in x_t."""
    return np.ravel(from_x_0(SCHEDULE, jnp.asarray(x_t), t, x_0).eps)


def flows(num=4000, steps=1000):
    """Reverse SDE and probability flow: walks of each, [steps, num, 1]."""
    denoiser = LINE.denoiser(SCHEDULE)
    times = timesteps.trailing(SCHEDULE, steps)
    kinds = (samplers.reverse_sde, samplers.probability_flow)
    begin = spread_normal(num)
    return [walk(kind(SCHEDULE), denoiser, begin, times) for kind in kinds]


LOSSES = (  # name, schedule, density, weight
    ("DDPM: eps, linear", SCHEDULE, "uniform", "eps"),
    ("eps, cosine", schedules.cosine(1000), "uniform", "eps"),
    ("EDM", schedules.log_snr_linear(1000), "edm", "edm"),
    ("flow, logit-normal", schedules.log_snr_linear(1000), "logit_normal", "flow"),
    ("min-SNR, cosine", schedules.cosine(1000), "uniform", "min_snr"),
)
EDGES = np.linspace(-7.5, 12, 79)
LEVELS = (EDGES[1:] + EDGES[:-1]) / 2


def seen(density, schedule, edges):
    """How often a density visits each bin of the log-SNR, as a density of it."""
    u = middles(50_000)
    times = density.quantile(schedule, jnp.asarray(u, jnp.float32))
    order = np.argsort(visited := np.asarray(schedules.log_snr(schedule, times)))
    level, first, count = np.unique(
        visited[order], return_index=True, return_counts=True
    )
    below = (first + count / 2) / len(u)  # the share of visits below a level
    return np.diff(np.interp(edges, level, below)) / np.diff(edges)


def effort(schedule, density, weight):
    """Density, log weight of x_0, and their product as a weight of eps, at LEVELS."""
    p = seen(densities.DENSITIES[density](), schedule, EDGES)
    log_w = np.asarray(WEIGHTINGS[weight](LEVELS))
    product = p * np.exp(log_w - LEVELS)  # the error of eps is e^λ that of x_0
    return p, log_w, product / product.sum() / (EDGES[1] - EDGES[0])


def tilted(scale, label, x):
    """q(x_0 | c)^scale q(x_0)^(1 - scale) at points x, made a density."""
    of_class = LINE.weights * (LINE.classes == label)
    given = LINE._replace(weights=of_class / of_class.sum())
    tilt = given.density(0, x) ** scale * LINE.density(0, x) ** (1 - scale)
    return tilt / np.trapezoid(tilt, x)
