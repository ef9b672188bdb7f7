"""Eight fake devices do what one does."""

import math
import re
import threading

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from ddpm_jax.diffusion import denoisers, losses, samplers, schedules, timesteps
from ddpm_jax.diffusion.samplers import loop
from ddpm_jax.distributed import devices
from ddpm_jax.networks import unet
from ddpm_jax.training.ema import Average, constant
from ddpm_jax.training.step import init_state, make_train_step

SHAPE = (8, 8, 1)
COLLECTIVE = (
    "(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    "|collective-broadcast)"
)
KEY = jax.random.key(0)
AVERAGES = {"ema": Average(constant, (("decay", 0.9),))}
SCHEDULE = schedules.cosine(100)
NETWORK = unet(  # of one level, with attention in the middle: it compiles fast
    channels=8,
    channel_mults=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    num_groups=4,
    dropout=0.2,
    num_classes=3,
    label_dropout=0.2,
)


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda key: NETWORK.init(key, SHAPE))
    return jax.device_get(init(KEY))  # on the host, where nothing donates them


def batch(num=16):
    return {
        "image": np.asarray(jax.random.normal(KEY, (num, *SHAPE))),
        "label": np.arange(num) % 3,
        "id": np.arange(num, dtype=np.uint32),
    }


def test_gradients_and_losses_do_not_depend_on_devices(params):
    """SGD shows a wrong factor that Adam would hide; dropout is on."""
    tx = optax.sgd(1.0)
    loss_fn = losses.simple(NETWORK.apply, SCHEDULE)
    one = jax.jit(make_train_step(loss_fn, tx, AVERAGES))
    many = devices.parallel_steps(
        make_train_step(loss_fn, tx, AVERAGES, axis_name=devices.AXIS), most=1
    )
    assert jax.local_device_count() == 8
    alone, shared = init_state(params, tx), init_state(params, tx)
    for step in range(2):
        alone, metrics = one(alone, batch(), KEY)
        shared, shared_metrics, _ = many(shared, [batch()], KEY)
        for name in metrics:
            np.testing.assert_allclose(
                metrics[name], shared_metrics[name], rtol=1e-4, err_msg=f"{name} {step}"
            )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), alone, shared
    )


def test_the_state_is_donated_and_comes_out_whole(params):
    tx = optax.adam(1e-3)
    loss_fn = losses.simple(NETWORK.apply, SCHEDULE)
    step = devices.parallel_steps(
        make_train_step(loss_fn, tx, AVERAGES, axis_name=devices.AXIS), most=1
    )
    first, _, _ = step(init_state(params, tx), [batch()], KEY)
    assert jax.tree.map(jnp.shape, first.params) == jax.tree.map(jnp.shape, params)
    second, metrics, _ = step(first, [batch()], KEY)
    assert jax.tree.leaves(first.params)[0].is_deleted()
    assert metrics["loss"].shape == () and int(second.step) == 2


def test_a_step_exchanges_the_gradient_once(params):
    """In one all-reduce, with the metrics and the votes; nothing else is exchanged."""
    tx = optax.adam(1e-3)
    loss_fn = losses.simple(NETWORK.apply, SCHEDULE)
    step = devices.parallel_steps(
        make_train_step(loss_fn, tx, AVERAGES, axis_name=devices.AXIS), most=1
    )
    program = jax.jit(step).lower(init_state(params, tx), [batch()], KEY).compile()
    exchanged = re.findall(rf"= (.*?) {COLLECTIVE}(?:-start)?\(", program.as_text())
    assert [kind for _, kind in exchanged] == ["all-reduce"]
    shapes = re.findall(r"f32\[([\d,]*)\]", exchanged[0][0])
    size = sum(math.prod(int(n) for n in s.split(",") if n) for s in shapes)
    # Equal gradients, as of biases that are added to the same features, go once.
    assert 0.99 < size / sum(p.size for p in jax.tree.leaves(params)) < 1.01


def reductions(jaxpr):
    """How many arrays each sum over devices takes, anywhere in a traced program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum"):
            yield len(equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from reductions(inner)


def test_the_traced_step_sums_each_gradient_once(params):
    """Beside them the vote and the metrics: the loss, a pair of each of four times.

    JAX traces a sum of a tree as one of each array; to join them is left to compilers.
    """
    tx = optax.adam(1e-3)
    loss_fn = losses.simple(NETWORK.apply, SCHEDULE)
    step = devices.parallel_steps(
        make_train_step(loss_fn, tx, AVERAGES, axis_name=devices.AXIS), most=1
    )
    traced = jax.make_jaxpr(step)(init_state(params, tx), [batch()], KEY)
    assert sum(reductions(traced.jaxpr)) == len(jax.tree.leaves(params)) + 2 + 8


def linear_step():
    """A step that fits a line, fast to compile, and its first state.

    A batch of infinities makes no number.
    """
    tx = optax.adam(0.1)

    def loss_fn(params, batch, key):
        noise = jax.random.normal(key, batch["y"].shape)
        error = params["a"] * batch["x"] + params["b"] - batch["y"] - 0.1 * noise
        return jnp.mean(error**2), {"loss": jnp.mean(error**2)}

    step = make_train_step(
        loss_fn, tx, AVERAGES, axis_name=devices.AXIS, skip_nonfinite=True
    )
    return step, init_state({"a": jnp.zeros(()), "b": jnp.ones(())}, tx)


def linear_steps(most):
    step, state = linear_step()
    return devices.parallel_steps(step, most), state


def points(step):
    x = np.random.default_rng(step).standard_normal(16).astype(np.float32)
    return {"x": x, "y": 3 * x + (np.inf if step == 4 else 0)}


@pytest.mark.parametrize("most", [1, 3])
def test_a_step_may_be_compiled_before_its_first_call(most):
    """By another thread; the call then traces and compiles nothing."""
    (step, state), seen = linear_step(), []
    state = devices.replicate(jax.device_get(state))
    traced = devices.trace_steps(step, most, state, points(0), KEY)

    def see(event, seconds, **_):
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(see)
    try:
        thread = threading.Thread(target=traced.compile)
        thread.start()
        thread.join()
        assert any("backend_compile" in event for event in seen)
        seen.clear()
        state, _, _ = devices.parallel_steps(step, most)(state, [points(0)], KEY)
        assert int(state.step) == 1
        assert not [event for event in seen if "compile" in event]
    finally:
        jax.monitoring.unregister_event_duration_listener(see)


def taken(most, lengths):
    """The final state, and what each step told."""
    steps, state = linear_steps(most)
    told, done = [], 0
    for length in lengths:
        batches = [points(done + i) for i in range(length)]
        state, metrics, votes = steps(state, batches, KEY, done > 0)
        assert float(votes) == (done > 0)
        told.append(jax.tree.map(lambda x, n=length: np.atleast_1d(x)[:n], metrics))
        done += length
    return state, jax.tree.map(lambda *x: np.concatenate(x), *told)


def test_steps_do_not_depend_on_how_they_are_cut_into_calls():
    """Bit for bit, also where one is skipped; as single steps, to rounding."""
    whole = taken(4, [4, 4])
    for most, lengths in ((4, [1, 3, 2, 2]), (8, [8]), (3, [3, 3, 2])):
        jax.tree.map(np.testing.assert_array_equal, whole, taken(most, lengths))
    state, told = whole
    assert int(state.step) == 8 and np.isfinite(state.params["a"])
    assert np.flatnonzero(~np.isfinite(told["loss"])).tolist() == [4]
    one_by_one = taken(1, [1] * 8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, one_by_one
    )


def test_averaged_parameters_stay_on_the_devices():
    """What training leaves on them is what samples are drawn with, not copied."""
    steps, state = linear_steps(2)
    state, _, _ = steps(state, [points(0)], KEY)
    for before, after in zip(
        jax.tree.leaves(state.ema_params),
        jax.tree.leaves(devices.replicate(state.ema_params)),
        strict=True,
    ):
        shards = zip(before.addressable_shards, after.addressable_shards, strict=True)
        for a, b in shards:
            assert a.data.unsafe_buffer_pointer() == b.data.unsafe_buffer_pointer()


@pytest.mark.parametrize("num", [3, 20])
def test_samples_do_not_depend_on_devices_or_batches(params, num):
    sample_fn = loop.make_sample_fn(
        NETWORK.apply,
        SCHEDULE,
        samplers.ddim(SCHEDULE, 0.5),
        timesteps.trailing(SCHEDULE, 4),
        SHAPE,
        transform=lambda denoiser: denoisers.clip(denoiser, SCHEDULE),
    )
    params = jax.tree.map(lambda p: p + 0.1, params)
    keys, labels = jax.random.split(KEY, num), np.arange(num) % 3
    alone = jax.jit(sample_fn)(params, keys, labels)
    shared = devices.parallel_map(sample_fn, batch_size=2)(params, keys, labels)
    assert shared.shape == (num, *SHAPE)
    np.testing.assert_allclose(alone, shared, atol=1e-4)


def test_a_batch_is_so_many_on_each_device():
    """And no more than there are, shared equally."""
    for num, batch_size, parts in ((70, 3, [24, 24, 22]), (9, 3, [9]), (5, 64, [5])):
        treated = []
        found = devices.in_batches(
            lambda x, treated=treated: treated.append(len(x)) or x,
            num,
            batch_size,
            "",
        )
        found = [*found]
        assert [len(x) for x in found] == parts
        np.testing.assert_array_equal(np.concatenate(found), np.arange(num))
        assert max(treated) == min(batch_size, -(-num // 8)) * 8


def test_sampling_exchanges_nothing_between_devices(params):
    sample_fn = loop.make_sample_fn(
        NETWORK.apply,
        SCHEDULE,
        samplers.ddpm(SCHEDULE),
        timesteps.trailing(SCHEDULE, 4),
        SHAPE,
    )
    compiled = devices.shard(sample_fn)
    keys = jax.random.split(KEY, 8)
    program = jax.jit(compiled).lower(params, keys, None).compile().as_text()
    assert not re.search(COLLECTIVE, program)


def test_batches_that_cannot_be_shared():
    devices.check_batch_size(16)
    with pytest.raises(ValueError, match="12 .* by 8 devices: .* multiple of 8"):
        devices.check_batch_size(12)
    with pytest.raises(ValueError, match="2 microbatches: choose a multiple of 16"):
        devices.check_batch_size(24, num_microbatches=2)
