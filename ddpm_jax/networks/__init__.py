"""Networks behind one small interface: `Network(init, apply)`."""

from ddpm_jax.networks.base import Network, check_labels
from ddpm_jax.networks.unets import unet

__all__ = ["Network", "check_labels", "unet"]
