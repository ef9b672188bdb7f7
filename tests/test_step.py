"""The training step, on one device and under its axis name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.distributed.devices import AXIS
from ddpm_jax.training.ema import Average, constant
from ddpm_jax.training.step import init_state, make_train_step

KEY = jax.random.key(0)
AVERAGES = {"ema": Average(constant, (("decay", 0.9),))}


def regression(params, batch, key):
    """A loss that depends on each example and on the key."""
    predicted = jnp.tanh(batch["x"] @ params["w"]) + params["b"]
    target = batch["y"] + 0.1 * jax.random.normal(key)
    loss = jnp.mean((predicted - target) ** 2)
    return loss, {"loss": loss}


def params():
    return {"w": jax.random.normal(KEY, (3,)), "b": jnp.zeros(())}


def batch(num=8):
    x = jax.random.normal(jax.random.key(1), (num, 3))
    return {"x": x, "y": jnp.sin(3 * x[:, 0])}


def test_a_step_is_gradient_descent():
    tx = optax.sgd(0.1)
    state = init_state(params(), tx)
    new, metrics = make_train_step(regression, tx, AVERAGES)(state, batch(), KEY)
    key = jax.random.fold_in(KEY, 0)
    (loss, _), grads = jax.value_and_grad(regression, has_aux=True)(
        params(), batch(), key
    )
    for name in grads:
        np.testing.assert_allclose(new.params[name], params()[name] - 0.1 * grads[name])
    np.testing.assert_allclose(metrics["loss"], loss)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads))
    assert new.step == 1


def test_the_average_copies_first_and_decays_then():
    tx = optax.sgd(0.5)
    step = make_train_step(regression, tx, AVERAGES)
    first, _ = step(init_state(params(), tx), batch(), KEY)
    second, _ = step(first, batch(), KEY)
    for name in first.params:
        np.testing.assert_array_equal(first.ema_params[name], first.params[name])
        expected = 0.9 * first.params[name] + 0.1 * second.params[name]
        np.testing.assert_allclose(second.ema_params[name], expected, rtol=1e-5)


def test_each_step_has_its_own_noise():
    tx = optax.sgd(0.0)
    step = make_train_step(regression, tx, AVERAGES)
    state = init_state(params(), tx)
    state, first = step(state, batch(), KEY)
    _, second = step(state, batch(), KEY)
    assert first["loss"] != second["loss"]


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_are_the_whole_batch(parts):
    tx = optax.sgd(0.1)
    results = [
        make_train_step(regression, tx, AVERAGES, n)(
            init_state(params(), tx), batch(), KEY
        )
        for n in (1, parts)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), *results)


def test_devices_average_the_gradient():
    """The vmap twin of the pmap: it refuses outputs that differ between devices."""
    tx = optax.sgd(0.1)
    whole, _ = make_train_step(regression, tx, AVERAGES)(
        init_state(params(), tx), batch(), KEY
    )
    mapped = jax.vmap(
        make_train_step(regression, tx, AVERAGES, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
    )
    cut = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch())
    shared, _ = mapped(init_state(params(), tx), cut, KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), whole, shared
    )
    with pytest.raises(ValueError, match="out_axes"):  # the twin notices a missing mean
        jax.vmap(
            make_train_step(regression, tx, AVERAGES),
            in_axes=(None, 0, None),
            out_axes=(None, None),
        )(init_state(params(), tx), cut, KEY)


def test_the_state_holds_no_buffer_twice():
    """Donation refuses a state whose leaves share memory."""
    tx = optax.adam(0.1)
    step = jax.jit(make_train_step(regression, tx, AVERAGES), donate_argnums=0)
    state = init_state(params(), tx)
    for _ in range(3):
        state, _ = step(state, batch(), KEY)
    assert state.step == 3


def test_a_step_that_is_not_finite_changes_only_what_counts():
    tx = optax.adam(optax.linear_schedule(0.1, 0.0, 10))
    step = make_train_step(regression, tx, AVERAGES, skip_nonfinite=True)
    good, _ = step(init_state(params(), tx), batch(), KEY)
    spoilt = jax.tree.map(lambda x: x.at[0].set(jnp.nan), batch())
    after, metrics = step(good, spoilt, KEY)
    assert not np.isfinite(metrics["loss"])
    for a, b in zip(jax.tree.leaves(good), jax.tree.leaves(after), strict=True):
        counts = jnp.issubdtype(a.dtype, jnp.integer)
        np.testing.assert_array_equal(a + 1 if counts else a, b)
    plain = make_train_step(regression, tx, AVERAGES)
    for a, b in zip(
        jax.tree.leaves(plain(good, batch(), KEY)),
        jax.tree.leaves(step(good, batch(), KEY)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)  # a good one is what it would be without
