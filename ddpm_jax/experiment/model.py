"""A model: what draws images, made of a config without what trains it."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import networks
from ddpm_jax.data import images
from ddpm_jax.diffusion import (
    denoisers,
    guidance,
    process,
    samplers,
    schedules,
    transforms,
)
from ddpm_jax.diffusion import timesteps as timesteps_module
from ddpm_jax.diffusion.conventions import CONVENTIONS
from ddpm_jax.diffusion.densities import DENSITIES
from ddpm_jax.diffusion.samplers import loop
from ddpm_jax.diffusion.weightings import WEIGHTINGS
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.registry import bound, choose, make, resolved, same
from ddpm_jax.experiment.sections import attempt, call, signature
from ddpm_jax.training.keys import random_key

# The parts of a config that decide a model.
DECIDE = (
    "image_shape",
    "schedule",
    "network",
    "loss",
    "denoiser",
    "sampler",
    "timesteps",
)

# What came later, and what it was before: left out of protocols where it is still so.
LATER = {
    "denoiser": {"guidance": "cfg"},
    "loss": {"density": None, "weighting": None, "stratified": False},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What draws images: pure functions, and the parameters to give them.

    Attributes:
      schedule: the noise schedule.
      network: the network, as two functions.
      init: key -> its first parameters, compiled once.
      predicts: what it predicts: "eps", "x_0" or "v".
      image_shape: (height, width, channels).
      num_classes: number of classes, 0 where unconditional.
      null: the class that means none, None where there is no such class.
      denoiser: (params, labels or None) -> the denoiser, clipped and guided as the
        config says, that samplers call as (x_t, t).
      sampler: the config's sampler.
      timesteps: the times that it visits, ending in 0.
      sample_fn: (params, keys [batch], labels [batch] or None) -> images, float
        [batch, height, width, channels] in [-1, 1], with all of these.
      picture_fn: the same as uint8 pixels, a quarter of what leaves the devices.
      config: what it was made of.
      params: of the network, as they were trained; None before.
    """

    schedule: schedules.Schedule
    network: networks.Network
    init: Callable[[jax.Array], Any]
    predicts: str
    image_shape: tuple[int, int, int]
    num_classes: int
    null: int | None
    denoiser: Callable[..., denoisers.Denoiser]
    sampler: samplers.Sampler
    timesteps: timesteps_module.Timesteps
    sample_fn: Callable
    picture_fn: Callable
    config: dict[str, Any]
    params: Any = None

    @property
    def network_calls(self) -> int:
        """How many a sample takes; guidance makes one call of twice the batch."""
        return self.sampler.calls * (len(self.timesteps) - 2) + 1

    @property
    def sections(self) -> dict[str, Any]:
        """The part of its config that describes it, without what it was trained on."""
        return {key: self.config[key] for key in DECIDE if key in self.config}

    def abstract_params(self):
        """Returns the shapes of the parameters, without computing anything."""
        return jax.eval_shape(self.init, random_key(0))

    def protocol(self) -> dict[str, dict[str, Any]]:
        """Returns what decides its samples beside the parameters, defaults too."""
        return complete(self.config)

    def __iter__(self):
        """Unpacks as (model, params), which `load` returned before."""
        warnings.warn(
            "ddpm_jax.load returns a model, with its parameters in model.params; "
            "unpacking it will end with the next version",
            FutureWarning,
            stacklevel=2,
        )
        return iter((self, self.params))


def build_model(config: dict[str, Any], like: Model | None = None) -> Model:
    """Makes the model of a config, without parameters, and checks it.

    Configs that say the same of it give the same functions, so what was compiled of
    them is found again.

    Args:
      config: the config.
      like: a model that only draws otherwise, whose network is taken as it is.

    Raises:
      ConfigError: one line that says which key is wrong, and how.
    """
    if like is not None:
        return _build_model(config, like)
    model = same(_build_model, {key: config[key] for key in DECIDE if key in config})
    return dataclasses.replace(model, config=config)


def _build_model(config, like=None):
    image_shape = tuple(config["image_shape"])
    num_classes = config.get("network", {}).get("num_classes", 0)
    schedule = make_schedule(config)
    network = make_network(config, schedule) if like is None else like.network
    init = jax.jit(lambda key: network.init(key, image_shape))
    sampler = make(config, "sampler", schedule)
    timesteps = make(config, "timesteps", schedule)
    has_null = bool(num_classes and config["network"].get("label_dropout"))
    null = num_classes if has_null else None
    predicts = config.get("loss", {}).get("predicts", "eps")
    attempt("loss", process.parameterization, predicts, schedule)
    transform = call(
        resolved(config, "denoiser", "guidance", guidance.GUIDANCE),
        "denoiser",
        transforms.make_transform,
        schedule,
        null,
    )

    def known(denoiser):
        def checked(x_t, t, labels=None):
            if num_classes and labels is not None:
                networks.check_labels(labels, num_classes + has_null)
            return denoiser(x_t, t, labels)

        return checked

    parts = {"predicts": predicts, "transform": lambda d: known(transform(d))}
    sample_fn = loop.make_sample_fn(
        network.apply, schedule, sampler, timesteps, image_shape, **parts
    )
    model = Model(
        schedule=schedule,
        network=network,
        init=init if like is None else like.init,
        predicts=predicts,
        image_shape=image_shape,
        num_classes=num_classes,
        null=null,
        denoiser=loop.make_denoiser(network.apply, schedule, **parts),
        sampler=sampler,
        timesteps=timesteps,
        sample_fn=sample_fn,
        picture_fn=lambda *given: images.to_uint8(sample_fn(*given)),
        config=config,
    )
    params = attempt("network", model.abstract_params)
    keys = jax.random.split(random_key(0), 2)
    labels = jax.ShapeDtypeStruct((2,), np.int32) if num_classes else None
    attempt("sampler", jax.eval_shape, sample_fn, params, keys, labels)
    return model


def make_network(
    config: dict[str, Any], schedule: schedules.Schedule
) -> networks.Network:
    """Makes the network of a config, called as all of the house call networks.

    Raises:
      ConfigError: see `build`.
    """
    section = dict(config.get("network", {}))
    asked = section.pop("convention", None)
    network = make({**config, "network": section}, "network")
    asked = {"network": {"convention": asked or network.convention}}
    convention = bound(asked, "network", "convention", CONVENTIONS, 2)
    apply = attempt("network.convention", convention, network.apply, schedule)
    return network._replace(apply=apply)


def make_loss(
    config: dict[str, Any], model: Model
) -> Callable[..., tuple[jax.Array, dict]]:
    """Makes the loss of a config: (params, batch, key) -> (loss, metrics).

    Raises:
      ConfigError: see `build`.
    """
    section = dict(config.get("loss", {}))
    density = bound(config, "loss", "density", DENSITIES)
    if density is not None:
        section["density"] = attempt("loss.density", density)
    weighting = bound(config, "loss", "weighting", WEIGHTINGS, 1)
    if weighting is not None:
        section["weighting"] = weighting
    config = {**config, "loss": section}
    return make(config, "loss", model.network.apply, model.schedule)


def make_schedule(config: dict[str, Any]) -> schedules.Schedule:
    """Makes the schedule of a config.

    Raises:
      ConfigError: see `build`.
    """
    section = dict(config.get("schedule", {}))
    reference = section.pop("reference_size", None)
    rescale = section.pop("zero_terminal_snr", False)
    if not isinstance(rescale, bool):
        raise ConfigError(
            f"config.schedule.zero_terminal_snr must be True or False, got {rescale!r}"
        )
    if reference is not None and not (type(reference) is int and reference > 0):
        raise ConfigError(
            f"config.schedule.reference_size must be a size or None, got {reference!r}"
        )
    config = {**config, "schedule": section}
    schedule = make(config, "schedule")
    if reference is not None:
        size = min(config["image_shape"][:2])
        schedule = schedules.shift(schedule, 2 * math.log(reference / size))
    if rescale:
        schedule = attempt("schedule", schedules.zero_terminal_snr, schedule)
    return schedule


def complete(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the sections that decide samples, with the defaults of what they name."""
    sections = ("schedule", "network", "loss", "sampler", "timesteps")
    called = {section: choose(config, section) for section in sections}
    called["denoiser"] = transforms.make_transform
    completed = {
        name: {
            key: parameter.default
            for key, parameter in signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        | config.get(name, {})
        for name, function in called.items()
    }
    for section, later in LATER.items():
        for key, before in later.items():
            if completed[section].get(key) == before:
                completed[section].pop(key, None)
    return completed
