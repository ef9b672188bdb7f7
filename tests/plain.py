"""A network of three layers, for what does not depend on the network."""

import os

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax import networks

NAME = f"{os.path.abspath(__file__)}:plain"


class Plain(nn.Module):
    channels: int
    num_classes: int
    label_dropout: float
    dropout: float
    learned_variance: bool

    @nn.compact
    def __call__(self, x_t, index, cond, train):
        time = jnp.sin(index[:, None] / 30 + jnp.arange(self.channels)[None])
        if self.num_classes:
            null = self.num_classes
            rows = null + (self.label_dropout > 0)
            label = jnp.full(len(x_t), null) if cond is None else cond
            time += nn.Embed(rows, self.channels)(label)
        h = nn.silu(nn.Conv(self.channels, (3, 3))(x_t) + time[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Conv(x_t.shape[-1] * (1 + self.learned_variance), (3, 3))(h)


def plain(
    channels: int = 8,
    num_classes: int = 0,
    label_dropout: float = 0.0,
    dropout: float = 0.1,
    learned_variance: bool = False,
):
    module = Plain(channels, num_classes, label_dropout, dropout, learned_variance)
    return networks.from_flax(module, num_classes)
