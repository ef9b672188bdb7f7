"""Random features of images, and their statistics, to be compared."""

import numpy as np

from ddpm_jax.metrics import statistics
from ddpm_jax.metrics.features.base import Outputs

DIM = 3
PROTOCOL = {"features": {"name": "pixels"}, "image_shape": [8, 8, 1], "num": 5}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def collected(seed, num=40, num_kept=None, protocol=PROTOCOL):
    outputs = Outputs(
        normal(seed, num, DIM), normal(seed + 1, num, 10), normal(seed + 2, num, 2)
    )
    return statistics.collect([outputs], num, protocol, num_kept)


OURS, THEIRS = collected(0), collected(10)
LABELS = np.arange(40) % 10
