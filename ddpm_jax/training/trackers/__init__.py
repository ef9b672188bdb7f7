"""Where a run is watched while it trains; each imports its package when it is made."""

from ddpm_jax.training.trackers.tensorboard import TensorBoard
from ddpm_jax.training.trackers.trackio import Trackio
from ddpm_jax.training.trackers.wandb import Wandb

TRACKERS = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}

__all__ = ["TRACKERS", "TensorBoard", "Trackio", "Wandb"]
