"""Weights of the training loss, as functions of the log-SNR λ.

Whatever a network predicts, its squared error is that of the clean image with a weight,

    E w(λ) ‖x̂_0 - x_0‖²,

and so is every loss of the papers, with other weights. Functions return log w(λ), in
which an SNR of 0 is no 0 / 0; `relative` has a network that predicts one thing lose in
another. A factor of the whole loss is of no matter, and left as the papers have it.

| name | w, where e^λ is the SNR | source |
|---|---|---|
| `x_0`, `eps`, `v`, `flow` | 1, e^λ, 1 + e^λ, (1 + e^(λ/2))² | plain errors of these |
| `edm` | e^λ + 1 / σ_data² | Karras et al. 2022, Table 1 |
| `min_snr` | min(e^λ, γ) | Hang et al. 2023, Eq. 8 |
| `soft_min_snr` | e^λ γ / (e^λ + γ) | Crowson et al. 2024, Eq. 6 |
| `p2` | e^λ / (k + e^λ)^γ | Choi et al. 2022, Eq. 8 |
| `sigmoid` | e^b sigmoid(λ - b) | Hoogeboom et al. 2024, Eq. 4 |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LogSNR = Float[Array | np.ndarray, "*batch"]


def x_0(log_snr: LogSNR) -> LogSNR:
    """The squared error of the clean image."""
    return jnp.zeros_like(log_snr)


def eps(log_snr: LogSNR) -> LogSNR:
    """The squared error of the noise."""
    return log_snr


def v(log_snr: LogSNR) -> LogSNR:
    """The squared error of v = alpha_t eps - sigma_t x_0."""
    return jax.nn.softplus(log_snr)


def flow(log_snr: LogSNR, largest: float = float("inf")) -> LogSNR:
    """The squared error of x_0 - eps.

    Args:
      log_snr: λ.
      largest: bound of the weight; 400 in "Just image Transformers" (Li & He 2025).
    """
    return jnp.minimum(2 * jax.nn.softplus(log_snr / 2), np.log(largest))


def edm(log_snr: LogSNR, sigma_data: float = 0.5) -> LogSNR:
    """That with which errors of the preconditioned network count alike.

    Args:
      log_snr: λ.
      sigma_data: standard deviation of the images.
    """
    return jnp.logaddexp(log_snr, -2 * np.log(sigma_data))


def min_snr(log_snr: LogSNR, gamma: float = 5.0) -> LogSNR:
    """The SNR up to γ, and γ where it is larger.

    Args:
      log_snr: λ.
      gamma: γ.
    """
    return jnp.minimum(log_snr, np.log(gamma))


def soft_min_snr(log_snr: LogSNR, gamma: float = 4.0) -> LogSNR:
    """The harmonic sum of the SNR and γ.

    Args:
      log_snr: λ.
      gamma: γ; the authors' is 1 / σ_data².
    """
    return log_snr - jnp.logaddexp(log_snr - np.log(gamma), 0.0)


def p2(log_snr: LogSNR, k: float = 1.0, gamma: float = 1.0) -> LogSNR:
    """Less weight where little noise hides detail that is not perceived.

    Args:
      log_snr: λ.
      k: from which SNR on.
      gamma: γ, how much less; 0 for none.
    """
    return log_snr - gamma * jnp.logaddexp(log_snr, np.log(k))


def sigmoid(log_snr: LogSNR, bias: float = 0.0) -> LogSNR:
    """The SNR up to e^b, and e^b where it is larger, smoothly.

    Args:
      log_snr: λ.
      bias: b.
    """
    return bias + jax.nn.log_sigmoid(log_snr - bias)


WEIGHTINGS = {
    "x_0": x_0,
    "eps": eps,
    "v": v,
    "flow": flow,
    "edm": edm,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
}


def relative(weighting: Callable, predicts: str) -> Callable[[LogSNR], LogSNR]:
    """Returns the weight of a squared error of what a network predicts.

    Args:
      weighting: λ -> log w(λ), such as those of this module.
      predicts: "eps", "x_0", "v" or "flow".
    """
    own = WEIGHTINGS[predicts]
    return lambda log_snr: jnp.exp(weighting(log_snr) - own(log_snr))
