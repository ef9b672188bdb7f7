"""Networks behind one small interface: `Network(init, apply)`."""

from ddpm_jax.networks.network import Network
from ddpm_jax.networks.unet import unet

__all__ = ["Network", "unet"]
