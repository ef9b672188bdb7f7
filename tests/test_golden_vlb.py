"""The bound, its losses and learned variance against OpenAI's code in float64.

See tests/data/README.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
    bound,
    denoisers,
    losses,
    process,
    samplers,
    schedules,
    timesteps,
    variances,
)

GOLDEN = np.load("tests/data/vlb.npz")
PREDICTS = {"eps": "eps", "xstart": "x_0"}
VARIANCE = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}
VARIANCE = {**VARIANCE, "learned_range": "learned_range"}
SCHEDULE = schedules.linear()
SHAPE = (2, 3, 4, 4)


def nhwc(x):
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def noise(index):
    return np.random.default_rng(7000 + index).standard_normal(SHAPE)


def model(predicts, learned):
    """The oracle's model; it works on each pixel, so the layout does not matter."""
    a = jnp.asarray(1 / (1 + np.exp(-SCHEDULE.log_snr)))  # alpha_t^2

    def apply(params, x, index, cond, dropout_keys):
        a_t = a[index + 1][:, None, None, None]
        if predicts == "xstart":
            out = 0.8 * jnp.tanh(x)
        else:
            score = (x - 0.1 * jnp.sqrt(a_t)) / (0.25 * a_t + 1 - a_t)
            out = jnp.sqrt(1 - a_t) * score + 0.1 * jnp.sin(3 * x)
        return jnp.concatenate([out, 0.5 * jnp.tanh(x)], axis=-1) if learned else out

    return apply


def clip_if(clip):
    return lambda d: denoisers.clip(d, SCHEDULE) if clip else d


def visited(num):
    """The oracle's indices, as our times from the noisiest down to 0."""
    indices = {
        1000: np.arange(1000),
        50: GOLDEN["space/50"],
        20: np.arange(0, 1000, 50),
    }[num]
    return timesteps.custom(SCHEDULE, [*(1 + indices[::-1])])


CASES = sorted({key.rsplit("/", 1)[0] for key in GOLDEN.files if key[:4] == "bpd/"})


def score(case, monkeypatch):
    _, predicts, variance, clip, num = case.split("/")
    times = visited(int(num[1:]))
    num_steps = len(times) - 1
    table = jnp.stack([nhwc(noise(i)) for i in reversed(range(num_steps))])
    monkeypatch.setattr(bound, "noise", lambda keys, i, like: table[i])
    bound_fn = bound.make_bound(
        model(predicts, variance == "learned_range"),
        SCHEDULE,
        times,
        PREDICTS[predicts],
        VARIANCE[variance],
        clip_if(clip == "clip1"),
        chunk=5,
    )
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.jit(bound_fn)(None, keys, nhwc(GOLDEN["x_start"]))


@pytest.mark.parametrize("case", CASES)
def test_bits_per_dimension(x64, monkeypatch, case):
    scored = score(case, monkeypatch)
    total, terms = scored.total(), scored.steps
    np.testing.assert_allclose(scored.prior, GOLDEN[f"{case}/prior_bpd"], rtol=1e-6)
    np.testing.assert_allclose(terms, GOLDEN[f"{case}/vb"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(total, GOLDEN[f"{case}/total_bpd"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixedsmall", "fixedlarge", "learned_range"])
def test_single_precision_is_good_to_a_hundredth_of_a_bit(monkeypatch, variance):
    """The eps model, whose bound is about 8 bits: far from a good one's 3."""
    (case,) = (c for c in CASES if c.startswith(f"bpd/eps/{variance}/clip1/T1000"))
    total = score(case, monkeypatch).total()
    assert total.dtype == np.float64
    np.testing.assert_allclose(total, GOLDEN[f"{case}/total_bpd"], atol=0.01)


LOSSES = sorted({key.rsplit("/", 1)[0] for key in GOLDEN.files if key[:5] == "loss/"})


@pytest.mark.parametrize("case", LOSSES)
def test_losses(x64, monkeypatch, case):
    """OpenAI's "kl" is one term of the bound; its "mse" is hybrid where T = 1000."""
    _, predicts, variance, name, index = case.split("/")
    learned, index = variance == "learned_range", int(index[1:])
    apply = model(predicts, learned)
    x_0, eps = nhwc(GOLDEN["x_start"]), nhwc(noise(index))
    t = jnp.full(2, index + 1)
    x_t = process.diffuse(SCHEDULE, x_0, t, eps)
    called = (x_0, x_t, t, eps, *denoisers.call_network(apply, None, x_t, t))
    each = {}
    for i in range(2):  # the oracle's losses are of each example
        one = [value if value is None else value[i : i + 1] for value in called]
        for module in (losses.bounds, losses.denoising):
            monkeypatch.setattr(module, "draw_and_call", lambda *args, one=one: one)
        if name == "kl":
            loss_fn = losses.vlb(
                apply, SCHEDULE, PREDICTS[predicts], VARIANCE[variance]
            )
        else:
            make = losses.hybrid if learned else losses.simple
            loss_fn = make(apply, SCHEDULE, PREDICTS[predicts])
        loss, metrics = loss_fn(None, None, None)
        ours = {"loss": loss / 1000 if name == "kl" else loss}
        if learned and name != "kl":
            ours |= {"mse": metrics["mse"], "vb": metrics["vlb"] / 1000}
        for key, value in ours.items():
            each.setdefault(key, []).append(value)
    for key, values in each.items():
        np.testing.assert_allclose(values, GOLDEN[f"{case}/{key}"], rtol=1e-9)


STEPS = sorted({key.rsplit("/", 1)[0] for key in GOLDEN.files if key[:7] == "psample"})


@pytest.mark.parametrize("case", STEPS)
def test_ancestral_steps(x64, monkeypatch, case):
    _, variance, clip, index = case.split("/")
    index = int(index[1:])
    apply = model("eps", variance == "learned_range")
    monkeypatch.setattr(samplers.base, "standard_normal", lambda *_: nhwc(noise(index)))
    denoiser = clip_if(clip == "clip1")(denoisers.from_network(apply, None, SCHEDULE))
    state = samplers.SamplerState(nhwc(GOLDEN["x_t"]))
    sampler = samplers.ddpm(SCHEDULE, VARIANCE[variance])
    state, prediction = sampler.step(denoiser, None, state, index + 1, index)
    close = lambda a, key: np.testing.assert_allclose(
        a, nhwc(GOLDEN[f"{case}/{key}"]), rtol=1e-10, atol=1e-10
    )
    close(prediction.x_0, "pred_xstart")
    close(state.x, "sample")
    if index > 0:  # at 0 the oracle's is the decoder's, which `bound` tests
        fraction = variances.fraction_of(VARIANCE[variance], prediction)
        ours = variances.reverse_variance(SCHEDULE, index + 1, index, fraction)
        close(jnp.broadcast_to(jnp.log(ours), state.x.shape), "log_variance")


def test_discretised_gaussian(x64):
    given = (jnp.asarray(GOLDEN[f"dgll/{key}"]) for key in ("x", "means", "log_scales"))
    np.testing.assert_allclose(
        bound.log_discretized(*given), GOLDEN["dgll/out"], rtol=1e-9, atol=1e-12
    )


def test_divergence_of_gaussians(x64):
    """Our KL takes the variance's logarithm relative to β̃, and the SNR's gap."""
    m1, lv1, m2, lv2 = (GOLDEN[f"kl/{key}"] for key in ("m1", "lv1", "m2", "lv2"))
    ours = bound.divergence(lv2 - lv1, np.exp(-lv1) * (m1 - m2) ** 2)
    np.testing.assert_allclose(ours, GOLDEN["kl/out"], rtol=1e-9)
