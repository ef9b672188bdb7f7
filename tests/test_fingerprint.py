"""What the parameters of a feature network are called."""

import jax.numpy as jnp
import numpy as np
import pytest
from features import normal

from ddpm_jax.metrics.features import base

TREE = {"a": {"w": normal(0, 3, 4)}, "b": np.arange(4), "c": np.float32(2)}


@pytest.mark.parametrize("other", [
    dict(reversed(TREE.items())),
    TREE | {"a": {"w": np.asfortranarray(TREE["a"]["w"])}},
    TREE | {"b": np.repeat(TREE["b"], 2)[::2]},
    TREE | {"a": {"w": jnp.asarray(TREE["a"]["w"])}, "c": jnp.float32(2)},
])  # fmt: skip
def test_equal_parameters_have_one_fingerprint(other):
    assert base.fingerprint(other) == base.fingerprint(TREE)


def test_other_parameters_have_another_fingerprint():
    w, b = TREE["a"]["w"], TREE["b"]
    others = [
        TREE,
        TREE | {"a": {"w": np.nextafter(w, np.inf)}},
        TREE | {"a": {"w": w.T}},
        TREE | {"a": {"w": w.reshape(4, 3)}},
        TREE | {"a": {"w": w.view(np.int32)}},
        TREE | {"a": {"v": w}},
        TREE | {"a": w},
        TREE | {"b": b.astype(np.uint64)},
        TREE | {"b": b[::-1]},
        TREE | {"b": b[:0]},
        TREE | {"b": (b[:2], b[2:])},
        TREE | {"c": np.full(1, 2, np.float32)},
        TREE | {"d": b},
        {"a": TREE["a"]},
        (),
    ]
    assert len({base.fingerprint(each) for each in others}) == len(others)


@pytest.mark.parametrize("leaf", [2.0, jnp.ones(3, jnp.bfloat16)], ids=str)
def test_fingerprints_of_other_leaves(leaf):
    base.fingerprint({"a": leaf})
