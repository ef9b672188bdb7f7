"""diffusers' schedulers: their configs in sections of ours and back."""

import math
from typing import Any

import numpy as np

from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.interop.unet2d import refuse, renamed

# DDPMScheduler's and DDIMScheduler's, where a config does not say.
DEFAULTS = dict(
    _class_name="DDPMScheduler",
    num_train_timesteps=1000,
    beta_start=1e-4,
    beta_end=2e-2,
    beta_schedule="linear",
    trained_betas=None,
    clip_sample=True,
    clip_sample_range=1.0,
    thresholding=False,
    dynamic_thresholding_ratio=0.995,
    sample_max_value=1.0,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
)
# Before diffusers 0.2; and `predict_epsilon`, a flag, before 0.11.
OLD_KEYS = {"timesteps": "num_train_timesteps", "clip_predicted_image": "clip_sample"}
# Where a scheduler has these keys, the only values that our chain of times can be.
SUPPORTED = dict(
    use_flow_sigmas=(False, None), timestep_type=("discrete",), snr_shift_scale=(1,)
)
# How a scheduler of diffusers draws samples; it says nothing of the model.
OF_SAMPLING = {
    *("algorithm_type", "disable_corrector", "euler_at_final", "final_sigmas_type"),
    *("flow_shift", "interpolation_type", "lambda_min_clipped", "lower_order_final"),
    *("predict_x0", "set_alpha_to_one", "set_alpha_to_zero", "sigma_max", "sigma_min"),
    *("skip_prk_steps", "solver_order", "solver_p", "solver_type", "steps_offset"),
    *("tensor_format", "time_shift_type", "timestep_spacing", "use_beta_sigmas"),
    *("use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"),
}
NAMES = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "sigmoid": "sigmoid",
    "squaredcos_cap_v2": "cosine",
}
PREDICTS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
COSINE = {"offset": 8e-3, "max_beta": 0.999}
SPACINGS = ("leading", "trailing", "linspace")
DDIM_STEPS = 50  # what diffusers' pipeline takes


def import_scheduler(
    theirs: dict[str, Any] | None, learned_variance: bool
) -> dict[str, dict]:
    """Returns the sections that say how a model is trained and sampled.

    A DDPMScheduler is sampled with all its steps, any other with 50 of DDIM: it is the
    noise schedule that belongs to a model, a sampler can be chosen.

    Args:
      theirs: the content of scheduler_config.json; None is a DDPMScheduler with the
        defaults of diffusers.
      learned_variance: whether the network learns its variance.

    Raises:
      OSError: naming the key and value that we have nothing for.
    """
    if theirs is None:
        variance = "learned_range" if learned_variance else "fixed_small"
        theirs = {"variance_type": variance}
    kind = theirs.get("_class_name", DEFAULTS["_class_name"])
    if "beta_schedule" not in theirs and kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise OSError(
            f"a scheduler of class {kind!r}, without a beta_schedule: only schedules "
            "of the β of DDPM can be imported"
        )
    for key, values in SUPPORTED.items():
        if theirs.get(key, values[0]) not in values:
            raise refuse(key, theirs[key], "its times or noise levels are others")
    theirs = DEFAULTS | _with_new_keys(theirs)
    loss = "hybrid" if learned_variance else "simple"
    steps, sampler = min(DDIM_STEPS, _steps(theirs)), dict(name="ddim", eta=0.0)
    if kind == "DDPMScheduler":
        steps, sampler = _steps(theirs), dict(name="ddpm", variance=_variance(theirs))
        if sampler["variance"] == "learned_range" and not learned_variance:
            raise refuse(
                "variance_type", "learned_range", "the network learns no variance"
            )
    return dict(
        schedule=_schedule(theirs),
        loss=dict(name=loss, predicts=_known(theirs, "prediction_type", PREDICTS)),
        denoiser=_bounds(theirs),
        sampler=sampler,
        timesteps=dict(name="trailing", num_steps=steps),
    )


def passed_over(theirs: dict[str, Any]) -> list[str]:
    """Returns, in words, the keys of a scheduler's config that are not known here."""
    known = {*DEFAULTS, *OF_SAMPLING, *SUPPORTED, *OLD_KEYS}
    known |= {"variance_type", "predict_epsilon"}
    unknown = [
        f"{key} = {value!r}"
        for key, value in theirs.items()
        if key not in known and key[0] != "_" and value not in (None, False)
    ]
    return [f"passed over, not known here: {', '.join(unknown)}"] if unknown else []


def export_scheduler(config: dict[str, Any], schedule: Schedule) -> dict[str, Any]:
    """Returns the content of scheduler_config.json, a DDPMScheduler, for our config."""
    sampler, network = config.get("sampler", {}), config["network"]
    default = "learned_range" if network.get("learned_variance") else "fixed_small"
    predicts = config.get("loss", {}).get("predicts", "eps")
    spacing = config.get("timesteps", {}).get("name")
    return dict(
        _class_name="DDPMScheduler",
        num_train_timesteps=schedule.num_steps,
        **_betas(config.get("schedule", {}), schedule),
        variance_type=sampler.get("variance", default),
        **_export_bounds(config.get("denoiser", {})),
        prediction_type={v: k for k, v in PREDICTS.items()}[predicts],
        timestep_spacing=spacing if spacing in SPACINGS else "leading",
        steps_offset=0,
    )


def _with_new_keys(theirs):
    theirs = renamed(theirs, OLD_KEYS)
    if "predict_epsilon" not in theirs:
        return theirs
    predicts = "epsilon" if theirs["predict_epsilon"] else "sample"
    if theirs.setdefault("prediction_type", predicts) != predicts:
        raise refuse(
            "predict_epsilon",
            theirs["predict_epsilon"],
            f"prediction_type says {theirs['prediction_type']!r}",
        )
    return theirs


def _bounds(theirs):
    """How x_0 is bounded: there, thresholding goes before clipping."""
    if not theirs["thresholding"]:
        bound = theirs["clip_sample_range"]
        if theirs["clip_sample"] and bound != 1:
            raise refuse(
                "clip_sample_range",
                bound,
                "clipping is to [-1, 1]; with clip_sample = false there is none",
            )
        return dict(clip=bool(theirs["clip_sample"]))
    ratio, largest = theirs["dynamic_thresholding_ratio"], theirs["sample_max_value"]
    if not 0 < ratio <= 1:
        raise refuse("dynamic_thresholding_ratio", ratio, "it must lie in (0, 1]")
    if not largest >= 1:
        raise refuse("sample_max_value", largest, "it must be 1 or more")
    if largest == 1:
        return dict(clip=True)
    bounds = dict(clip=True, dynamic_percentile=100 * ratio)
    return bounds if math.isinf(largest) else {**bounds, "dynamic_largest": largest}


def _export_bounds(denoiser):
    percentile = denoiser.get("dynamic_percentile")
    bounds = dict(clip_sample=denoiser.get("clip", True), clip_sample_range=1.0)
    if percentile is None:
        return bounds
    return dict(
        **bounds,
        thresholding=True,
        dynamic_thresholding_ratio=percentile / 100,
        sample_max_value=denoiser.get("dynamic_largest") or math.inf,
    )


def _steps(theirs):
    betas = theirs["trained_betas"]
    return theirs["num_train_timesteps"] if betas is None else len(betas)


def _variance(theirs):
    variance = theirs.get("variance_type", "fixed_small")
    if variance not in VARIANCES:
        raise refuse("variance_type", variance, "known are " + ", ".join(VARIANCES))
    return VARIANCES[variance]


def _known(theirs, key, known):
    if theirs[key] not in known:
        raise refuse(key, theirs[key], "known are " + ", ".join(known))
    return known[theirs[key]]


def _schedule(theirs):
    if theirs["trained_betas"] is not None:
        section = dict(name="from_betas", betas=list(theirs["trained_betas"]))
    else:
        name = _known(theirs, "beta_schedule", NAMES)
        section = dict(name=name, num_steps=theirs["num_train_timesteps"])
        if name != "cosine":
            section |= {key: theirs[key] for key in ("beta_start", "beta_end")}
    if theirs["rescale_betas_zero_snr"]:
        section["zero_terminal_snr"] = True
    return section


def _betas(section, schedule):
    """The schedule by its name where diffusers has it, else as numbers."""
    known = {ours: name for name, ours in NAMES.items()}
    name = section.get("name")
    capped = {key: section.get(key, value) for key, value in COSINE.items()}
    if name not in known or (name == "cosine" and capped != COSINE):
        return dict(trained_betas=_forward_variances(schedule))
    return dict(
        beta_schedule=known[name],
        beta_start=section.get("beta_start", DEFAULTS["beta_start"]),
        beta_end=section.get("beta_end", DEFAULTS["beta_end"]),
        rescale_betas_zero_snr=section.get("zero_terminal_snr", False),
    )


def _forward_variances(schedule):
    """β_1 ... β_T in float64: 1 - alpha_t² / alpha_{t-1}² of the table."""
    log_alpha_sq = -np.logaddexp(0, -np.asarray(schedule.log_snr, np.float64))
    return (-np.expm1(np.diff(log_alpha_sq))).tolist()
