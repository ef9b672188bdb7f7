"""One step of DDPM and DDIM against diffusers in float64 (see tests/data/README.md)."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, process, samplers, schedules
from ddpm_jax.diffusion.samplers import base

GOLDEN = np.load("tests/data/schedulers.npz")
PREDICTS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def array(key):
    return jnp.asarray(GOLDEN[key])


def step(sampler_of, predicts, t, num_steps, clip, rederive, monkeypatch, noise):
    """Takes a step from index t to index t - 1000 / num_steps, with the given noise."""
    schedule = schedules.linear()
    denoiser = denoisers.from_network(
        lambda *args: array("out"), None, schedule, PREDICTS[predicts]
    )
    if clip:
        denoiser = denoisers.clip(denoiser, schedule, rederive=rederive)
    monkeypatch.setattr(base, "standard_normal", lambda keys, like: noise)
    times = jnp.array([t + 1, max(t - 1000 // num_steps + 1, 0)])
    state = samplers.SamplerState(array("x"))
    return sampler_of(schedule).step(denoiser, None, state, *times)


def settings(key):
    """Reads "clip1/n50/t20" and the like into {"clip": "1", "n": "50", "t": "20"}."""
    parts = [part for part in key.split("/") if any(c.isdigit() for c in part)]
    return {part.rstrip("0123456789."): part.lstrip("abcdefghijklmnopqrstuvwxyz_")
            for part in parts}  # fmt: skip


@pytest.mark.parametrize("t", [0, 1, 10, 500, 999])
def test_noising_and_velocity(x64, t):
    for function, name in [
        (process.diffuse, "q_sample"),
        (process.velocity, "velocity"),
    ]:
        ours = function(schedules.linear(), array("x0"), t + 1, array("noise"))
        np.testing.assert_allclose(ours, GOLDEN[f"{name}/t{t}"], **TOLERANCE)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_ddpm(x64, monkeypatch, predicts, variance):
    keys = [k for k in GOLDEN.files if k.startswith(f"ddpm/{predicts}/{variance}/")]
    assert len(keys) >= 60
    for key in keys:
        given = settings(key)
        noise = array("noise") if key.endswith("prev") else jnp.zeros_like(array("x"))
        state, _ = step(
            lambda schedule: samplers.ddpm(schedule, variance),
            predicts,
            int(given["t"]),
            int(given["n"]),
            given["clip"] == "1",
            True,
            monkeypatch,
            noise,
        )
        np.testing.assert_allclose(state.x, GOLDEN[key], **TOLERANCE, err_msg=key)


@pytest.mark.parametrize("eta", ["0", "0.5", "1"])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_ddim(x64, monkeypatch, predicts, eta):
    keys = [k for k in GOLDEN.files if k.startswith(f"ddim/{predicts}/eta{eta}/")]
    assert len(keys) >= 40
    for key in keys:
        given = settings(key)
        state, prediction = step(
            lambda schedule: samplers.ddim(schedule, float(eta)),
            predicts,
            int(given["t"]),
            int(given["n"]),
            given["clip"] == "1",
            given["rederive"] == "1",
            monkeypatch,
            array("noise"),
        )
        ours = state.x if key.endswith("prev") else prediction.x_0
        np.testing.assert_allclose(ours, GOLDEN[key], **TOLERANCE, err_msg=key)
