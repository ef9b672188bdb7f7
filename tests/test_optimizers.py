"""Optimizers and learning rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.optimizers import (
    OPTIMIZERS,
    clip_by_global_norm,
    global_norm,
    make_optimizer,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_goes_downhill(name):
    tx, _ = make_optimizer(name, learning_rate=0.1)
    x = jnp.array(3.0)
    state = tx.init(x)
    for _ in range(100):
        update, state = tx.update(2 * x, state, x)
        x = x + update
    assert abs(x) < 1


def test_warm_up_is_ho_et_al():
    """The rate is 2e-4 min(step / 5000, 1), where step counts the updates made."""
    _, rate = make_optimizer("adam", 2e-4, warmup_steps=5000)
    for step in (0, 1, 2500, 5000, 700_000):
        np.testing.assert_allclose(rate(step), 2e-4 * min(step / 5000, 1), atol=1e-9)


@pytest.mark.parametrize("decay, half", [("cosine", 0.5), ("linear", 0.5)])
def test_decays_end_at_0(decay, half):
    _, rate = make_optimizer("adam", 1.0, warmup_steps=10, decay=decay, decay_steps=110)
    np.testing.assert_allclose(
        [rate(5), rate(10), rate(60), rate(110), rate(500)],
        [0.5, 1, half, 0, 0],
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, np.inf, np.nan])
def test_norm_and_clipping_are_those_of_optax(size):
    """Of arrays alike, which are added up first, and of others."""
    draw = np.random.default_rng(0).standard_normal
    shapes = [(3, 3, 20, 10), (7,), (), (3, 3, 20, 10), (7,), (2, 3)]
    grads = {f"{i}": np.float32(size * draw(s)) for i, s in enumerate(shapes)}
    np.testing.assert_allclose(global_norm(grads), optax.tree.norm(grads), rtol=1e-6)
    ours, theirs = clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5)
    assert ours.init(grads) == theirs.init(grads)
    (a, _), (b, _) = (tx.update(grads, tx.init(grads)) for tx in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), a, b)


def test_clipping_is_global():
    tx, _ = make_optimizer("sgd", 1.0, clip_norm=1.0)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["a"], -0.6, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.8, rtol=1e-6)
    tx, _ = make_optimizer("sgd", 1.0, clip_norm=None)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["a"], -3.0)


def test_settings_go_to_optax():
    plain, heavy = (
        make_optimizer("sgd", 1.0, clip_norm=None, momentum=m)[0] for m in (None, 0.9)
    )
    x = jnp.array(1.0)
    for tx, expected in [(plain, -1.0), (heavy, -1.9)]:
        state = tx.init(x)
        _, state = tx.update(x, state, x)
        update, _ = tx.update(x, state, x)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"name": "adan"}, ValueError, "did you mean 'adam'"),
        ({"learning_rat": 1}, TypeError, "did you mean 'learning_rate'"),
        ({"weight_decya": 1, "name": "adamw"}, TypeError, "'weight_decay'"),
        ({"decay": "cosin"}, ValueError, "did you mean 'cosine'"),
        ({"decay": "linear"}, ValueError, "needs decay_steps"),
        (
            {"decay": "linear", "warmup_steps": 9, "decay_steps": 9},
            ValueError,
            "beyond the warm-up",
        ),
    ],
)
def test_mistakes_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        make_optimizer(**settings)
