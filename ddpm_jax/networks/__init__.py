"""Networks behind one small interface: `Network(init, apply)`."""

from ddpm_jax.networks.base import Network, check_labels, from_flax
from ddpm_jax.networks.edm_unets import ddpmpp, ncsnpp
from ddpm_jax.networks.jits import jit
from ddpm_jax.networks.unets import unet
from ddpm_jax.networks.uvits import uvit

NETWORKS = {"unet": unet, "ddpmpp": ddpmpp, "ncsnpp": ncsnpp, "jit": jit, "uvit": uvit}

__all__ = [
    "NETWORKS",
    "Network",
    "check_labels",
    "ddpmpp",
    "from_flax",
    "jit",
    "ncsnpp",
    "unet",
    "uvit",
]
