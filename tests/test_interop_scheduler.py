"""The configs of diffusers' schedulers: what is read, passed over and refused."""

import json

import numpy as np
import pytest
from foreign import CONFIG, config_of, draw, edit, message, write_folder

from ddpm_jax.diffusion import schedules
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)


@pytest.mark.parametrize(
    "schedule, section",
    [
        (schedules.cosine(50, offset=0.01), dict(name="cosine", offset=0.01)),
        (schedules.constant(50), dict(name="constant")),
        (
            schedules.zero_terminal_snr(schedules.constant(50)),
            dict(name="constant", zero_terminal_snr=True),
        ),
    ],
)
def test_other_schedules_are_written_as_betas(tmp_path, schedule, section):
    config = {**CONFIG, "schedule": section}
    diffusers.export(config, schedule, draw(config), tmp_path / "model")
    section = open_published(tmp_path / "model").config["schedule"]
    assert section.pop("name") == "from_betas" and list(section) == ["betas"]
    again = schedules.from_betas(**section)
    # The last log-SNR may be -inf, and 1 - β is rounded before it.
    np.testing.assert_allclose(again.log_snr, schedule.log_snr, rtol=1e-9)


def test_older_spellings_of_schedulers(folder):
    path = folder / "scheduler/scheduler_config.json"
    theirs = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
    old = dict(timesteps=50, clip_predicted_image=False, predict_epsilon=False)
    path.write_text(json.dumps({**theirs, **old, "tensor_format": "pt"}))
    opened = open_published(folder)
    assert opened.config["schedule"]["num_steps"] == 50
    assert opened.config["denoiser"] == dict(clip=False)
    assert opened.config["loss"]["predicts"] == "x_0"
    assert opened.notes == []
    edit(path, prediction_type="epsilon")
    said = message(open_published, folder)
    assert "predict_epsilon = False" in said and "prediction_type says 'eps" in said


def test_keys_of_schedulers_that_are_not_known(folder):
    """What only chooses a sampler is passed over, the rest is named."""
    path = folder / "scheduler/scheduler_config.json"
    edit(
        path,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=False,
        solver_order=2,
        algorithm_type="dpmsolver++",
        use_karras_sigmas=True,
        lambda_min_clipped=-np.inf,
        not_used=None,
    )
    assert open_published(folder).notes == []
    edit(path, warp=0.3)
    (note,) = open_published(folder).notes
    assert note == f"{path}: passed over, not known here: warp = 0.3"


def test_other_schedulers(folder):
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    config = config_of(folder)
    assert config["sampler"] == dict(name="ddim", eta=0.0)
    assert config["timesteps"] == dict(name="trailing", num_steps=50)
    assert config["denoiser"] == dict(clip=True)
    assert config["schedule"] == CONFIG["schedule"]
    edit(path, _class_name="PNDMScheduler", beta_schedule="scaled_linear")
    assert config_of(folder)["schedule"]["name"] == "quadratic"
    edit(path, trained_betas=[0.1, 0.2])
    config = config_of(folder)
    assert config["schedule"] == dict(name="from_betas", betas=[0.1, 0.2])
    assert config["timesteps"]["num_steps"] == 2
    path.write_text(json.dumps({"variance_type": "fixed_large_log"}))
    config = config_of(folder)
    assert config["sampler"] == dict(name="ddpm", variance="fixed_large")


@pytest.mark.parametrize(
    "key, value",
    [
        ("beta_schedule", "laplace"),
        ("prediction_type", "flow"),
        ("variance_type", "learned"),
        ("variance_type", "learned_range"),
        ("clip_sample_range", 2.0),
        ("use_flow_sigmas", True),
        ("timestep_type", "continuous"),
        ("snr_shift_scale", 3.0),
    ],
)
def test_refused_schedulers(folder, key, value):
    edit(folder / "scheduler/scheduler_config.json", **{key: value})
    said = message(open_published, folder)
    assert f"{key} = {value!r}" in said and "scheduler_config.json" in said


@pytest.mark.parametrize(
    "values, denoiser",
    [
        # Bounded by 1, all of it is plain clipping, and clip_sample is not asked.
        (dict(sample_max_value=1.0, clip_sample=False), dict(clip=True)),
        (dict(), dict(clip=True)),
        (
            dict(sample_max_value=1.5, clip_sample_range=3.0),
            dict(clip=True, dynamic_percentile=99.5, dynamic_largest=1.5),
        ),
        (
            dict(dynamic_thresholding_ratio=0.95, sample_max_value=np.inf),
            dict(clip=True, dynamic_percentile=95.0),
        ),
    ],
)
def test_thresholding(folder, values, denoiser):
    edit(folder / "scheduler/scheduler_config.json", thresholding=True, **values)
    assert config_of(folder)["denoiser"] == denoiser


@pytest.mark.parametrize(
    "key, value", [("dynamic_thresholding_ratio", 1.2), ("sample_max_value", 0.5)]
)
def test_refused_thresholding(folder, key, value):
    path = folder / "scheduler/scheduler_config.json"
    edit(path, thresholding=True, **{key: value})
    assert f"{path}: {key} = {value} is not supported" in message(
        open_published, folder
    )
