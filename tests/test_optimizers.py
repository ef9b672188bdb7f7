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
    remarks,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_goes_downhill(name):
    tx, _ = make_optimizer(name, learning_rate=0.1)
    x = jnp.array(3.0)
    state = tx.init(x)
    for _ in range(200):
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
        ({"learning_rate": np.nan}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": np.inf}, ValueError, "learning_rate must be positive"),
        ({"clip_norm": np.nan}, ValueError, "clip_norm must be positive or None"),
        ({"b1": 2.0}, ValueError, "b1 must lie in .0, 1., got 2.0"),
        ({"b1": 1.0}, ValueError, "b1 must lie in .0, 1., got 1.0"),
        ({"b2": -0.1}, ValueError, "b2 must lie in .0, 1., got -0.1"),
        ({"b2": np.nan}, ValueError, "b2 must lie in .0, 1., got nan"),
        ({"eps": 0.0}, ValueError, "eps must be positive, got 0.0"),
        ({"eps_root": -1e-8}, ValueError, "eps_root must be 0 or more"),
        ({"decay": "inverse_sqrt"}, ValueError, "needs decay_start, a step after"),
        ({"decayed": "kernel"}, ValueError, "did you mean 'kernels'"),
        ({"decayed": "kernels"}, ValueError, "is of adamw and muon, not of adam"),
        ({"name": "muon", "beta": 1.0}, ValueError, "beta must lie in .0, 1."),
        ({"name": "muon", "ns_steps": 0}, ValueError, "ns_steps must be 1 or more"),
        ({"nesterov": "no"}, ValueError, "nesterov must be True or False, got 'no'"),
        ({"mu_dtype": "float16"}, ValueError, "must be 'float32' or 'bfloat16'"),
        ({"name": "sgd", "momentum": 1.0}, ValueError, "momentum must lie in .0, 1."),
        ({"name": "adamw", "weight_decay": -1}, ValueError, "weight_decay must be 0"),
        (
            {"name": "adamw", "weight_decay": np.inf},
            ValueError,
            "weight_decay must be 0 or more, got inf",
        ),
    ],
)
def test_mistakes_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        make_optimizer(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"mu_dtype": "bfloat16", "eps_root": 0.0, "b1": 0.0},
        {"name": "sgd", "momentum": None, "nesterov": True, "accumulator_dtype": None},
    ],
)
def test_what_can_be_meant_is_accepted(settings):
    make_optimizer(**settings)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_decay_lasts_as_long_as_the_training_unless_told(decay):
    def rates(**settings):
        _, rate = make_optimizer("adam", 1.0, 10, decay, **settings)
        return [float(rate(step)) for step in (5, 60, 110, 210)]

    assert rates(num_steps=110) == rates(decay_steps=110)
    assert rates(num_steps=210) == rates(decay_steps=210, num_steps=110)
    assert rates(num_steps=210) != rates(num_steps=110)
    assert rates(num_steps=4)[0] == 0.5  # a trial that ends while warming up


def test_a_rate_of_0_before_the_end_is_refused():
    for decay in ("cosine", "linear"):
        with pytest.raises(
            ValueError, match="goes on to step 10000: .*steps=10000, or"
        ):
            remarks(10_000, 100, decay, 2500)
        assert remarks(2500, 100, decay, 2500) == remarks(2500, 100, decay) == []
        assert remarks(1000, 100, decay, 2500, b1=0.9) == []


def test_what_is_odd_about_a_rate_is_said():
    assert remarks(100, warmup_steps=99) == []
    (said,) = remarks(100, warmup_steps=100)
    assert "warmup_steps 100 are not over when the training ends, at step 100" in said
    (said,) = remarks(100, decay="constant", decay_steps=50)
    assert "decay_steps 50 has no effect" in said


def test_the_inverse_square_root_is_that_of_edm2():
    """Lr / sqrt(max(t / t_ref, 1)) * min(t / warm-up, 1), Karras et al. (2024)."""
    settings = {"warmup_steps": 10, "decay_start": 70}
    _, rate = make_optimizer("adam", 0.01, decay="inverse_sqrt", **settings)
    for step in (0, 5, 10, 69, 70, 71, 280, 7000):
        expected = 0.01 / np.sqrt(max(step / 70, 1)) * min(step / 10, 1)
        np.testing.assert_allclose(rate(step), expected, rtol=1e-6)
    assert remarks(10_000, 10, "inverse_sqrt", decay_start=70) == []
    assert "decay_start 70 has no effect" in remarks(100, decay_start=70)[0]


def parameters():
    draw = np.random.default_rng(0).standard_normal
    return {
        "conv": {"kernel": draw((3, 3, 4, 8)), "bias": draw(8)},
        "norm": {"scale": draw(8), "bias": draw(8)},
        "dense": {"kernel": draw((8, 6)), "bias": draw(6)},
        "classes": {"embedding": draw((10, 8))},
    }


def updates(name, grads, params, **settings):
    tx, _ = make_optimizer(name, 0.1, clip_norm=None, **settings)
    return tx.update(grads, tx.init(params), params)[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_may_leave_biases_and_norms_alone(name):
    """With gradients of 0, what is left is the decay."""
    params, draw = parameters(), {"weight_decay": 0.5}
    zeros = jax.tree.map(np.zeros_like, params)
    change = updates(name, zeros, params, decayed="kernels", **draw)
    for layer, leaves in params.items():
        for key, leaf in leaves.items():
            rest = -0.05 * leaf if key == "kernel" else 0 * leaf
            np.testing.assert_allclose(change[layer][key], rest, atol=1e-6)
    if name == "adamw":
        change = updates(name, zeros, params, **draw)
        np.testing.assert_allclose(
            change["norm"]["scale"], -0.05 * params["norm"]["scale"], rtol=1e-5
        )


def test_muon_makes_a_kernel_orthogonal_and_leaves_the_rest_to_adam():
    params = parameters()
    draw = np.random.default_rng(1).standard_normal
    grads = jax.tree.map(lambda x: draw(x.shape).astype(np.float32), params)
    change = updates("muon", grads, params, ns_steps=10)
    for layer in ("conv", "dense"):
        matrix = np.asarray(change[layer]["kernel"])
        matrix = matrix.reshape(-1, matrix.shape[-1])  # from inputs to outputs
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.max() / values.min() < 2.0  # of the gradient, above 3
    adam = updates("adam", grads, params, nesterov=True)
    for layer, key in (("conv", "bias"), ("norm", "scale"), ("classes", "embedding")):
        np.testing.assert_allclose(change[layer][key], adam[layer][key], rtol=1e-4)


def test_muon_of_stacked_blocks_is_that_of_each():
    draw = np.random.default_rng(2).standard_normal((3, 8, 6)).astype(np.float32)
    whole = {"blocks": {"kernel": draw}}
    change = updates("muon", whole, jax.tree.map(np.zeros_like, whole))
    for i, kernel in enumerate(draw):
        one = {"block": {"kernel": kernel}}
        alone = updates("muon", one, jax.tree.map(np.zeros_like, one))
        np.testing.assert_allclose(
            change["blocks"]["kernel"][i],
            alone["block"]["kernel"],
            rtol=1e-4,
            atol=1e-6,
        )


def test_muon_with_a_consistent_size_moves_as_far_as_adam():
    params = parameters()
    grads = jax.tree.map(np.ones_like, params)
    draw = np.random.default_rng(1).standard_normal
    grads = jax.tree.map(lambda x: draw(x.shape).astype(np.float32), grads)
    change = updates("muon", grads, params, consistent_rms=0.2)["dense"]["kernel"]
    np.testing.assert_allclose(np.sqrt(np.mean(change**2)), 0.1 * 0.2, rtol=0.25)
