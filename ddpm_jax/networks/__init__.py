"""Networks behind one small interface: `Network(init, apply)`."""

from ddpm_jax.networks.network import Network, check_labels
from ddpm_jax.networks.unet import unet

__all__ = ["Network", "check_labels", "unet"]
