"""Training losses.

    L_simple = E ‖ eps - eps_θ(alpha_t x_0 + sigma_t eps, t) ‖²     (Ho et al., Eq. 14)
    L_vlb    = T E L(t→t-1), in bits per dimension                  (see `bound`)
    L_hybrid = L_simple + 0.001 L_vlb             (Nichol & Dhariwal 2021, Section 3.1)

over t ~ U{1..T} and eps, as means over pixels; likewise for x_0 and v. In the hybrid,
L_vlb teaches the variance alone: its gradient stops at the mean. Every example draws
from its own key, so a loss does not depend on how a batch is cut.

A loss is loss_fn(params, batch, key) -> (loss, metrics). `batch` holds "image", float
[batch, height, width, channels] in [-1, 1]; "id", uint32 [batch], which tells examples'
random numbers apart; "label", int [batch], where the network is conditional; and
"augmentation", [batch, numbers], where it is told how images were augmented. The
network is `apply`, (params, x_t, index [batch], cond, dropout_keys [batch]) -> output.

A metric is a scalar, the mean over the batch; or, where it is of some of the examples,
a pair: its share of such a mean, and the part of the batch that they are. Devices and
steps then average both.
"""

from ddpm_jax.diffusion.losses.base import LossFn
from ddpm_jax.diffusion.losses.bounds import hybrid, vlb
from ddpm_jax.diffusion.losses.denoising import simple

LOSSES = {
    "simple": simple,
    "hybrid": hybrid,
    "vlb": vlb,
}

__all__ = ["LOSSES", "LossFn", "hybrid", "simple", "vlb"]
