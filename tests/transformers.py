"""Weights and outputs of transformers as their authors' code has them."""

import json

import jax
import numpy as np

from ddpm_jax.interop.layout import read_params


def reference(name, seed):
    """What data/NAME.npz holds, and the weights behind it, which are drawn anew."""
    with np.load(f"tests/data/{name}.npz") as data:
        held = {key: data[key] for key in data}
    random, shapes = np.random.default_rng(seed), json.loads(str(held.pop("names")))
    weights = {k: 0.3 * random.standard_normal(s) for k, s in shapes.items()}
    return held, weights


def read(module, network, depth, weights, image_shape, dtype):
    """Our parameters of such weights."""
    layout = module.make_layout(depth, {k: v.shape for k, v in weights.items()})
    like = jax.eval_shape(lambda: network.init(jax.random.key(0), image_shape))
    like = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), dtype), x.shape), like)
    return read_params(weights, layout, like)


def shapes_of(network, image_shape):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), image_shape))


def count(network, image_shape):
    return sum(x.size for x in jax.tree.leaves(shapes_of(network, image_shape)))


def random_params(network, image_shape, scale=0.1):
    random = np.random.default_rng(0)
    draw = lambda x: (scale * random.standard_normal(x.shape)).astype(x.dtype)
    return jax.tree.map(draw, shapes_of(network, image_shape))


def lines(function, *given):
    """Of the program of a function, and of all within it."""
    return str(jax.make_jaxpr(function)(*given)).count("\n")
