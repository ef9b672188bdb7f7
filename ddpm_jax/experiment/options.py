"""How long, how often and how: the sections `train` and `evaluation`, and sampling."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ddpm_jax.errors import ConfigError, unknown
from ddpm_jax.experiment.registry import bound, choose
from ddpm_jax.experiment.sections import attempt, call, signature
from ddpm_jax.metrics.by_name import SIGNS
from ddpm_jax.training import ema
from ddpm_jax.training.loop import TrainOptions
from ddpm_jax.training.trackers import TRACKERS

# Where a sampler needs times of its own, unless others are asked for: Heun's steps must
# not divide the noise level by much.
SPACING = {"heun": "karras"}


class ScoreOptions(NamedTuple):
    """The section `evaluation` of a config: scores while training.

    Attributes:
      every: steps between scores, 0 for none.
      metric: "fid", "sfid", "kid", "fd", "is" or "accuracy".
      num: how many samples are scored.
      batch_size: samples at a time, on each device.
      inception: the file of the Inception network's weights, or None for those in the
        cache.
      convention: how images come to its size (see `metrics.features.resize`).
    """

    every: int = 0
    metric: str = "fd"
    num: int = 2048
    batch_size: int = 256
    inception: str | None = None
    convention: str = "tf"


class SampleOptions(NamedTuple):
    """How to draw otherwise than a config says; None leaves it as it is.

    Attributes:
      sampler: its name.
      timesteps: the name of their spacing; by default the config's, or that which suits
        another sampler.
      num_steps: how many.
      eta: of a sampler that has one.
      variance: of a sampler that has one.
      guidance_scale: 0 unconditional, 1 conditional, or more.
      overridden: the keys that were given by hand, as in "sampler.eta" or "sampler" for
        all of a section; they stay where the sampler or spacing is another.
    """

    sampler: str | None = None
    timesteps: str | None = None
    num_steps: int | None = None
    eta: float | None = None
    variance: str | None = None
    guidance_scale: float | None = None
    overridden: Sequence[str] = ()

    def keys(self, section: str) -> set[str]:
        """The keys of a section that were given by hand; "" for all of it."""
        paths = (path.partition(".") for path in self.overridden)
        return {key for first, _, key in paths if first == section}


def with_sampling(config: dict[str, Any], options: SampleOptions) -> dict[str, Any]:
    """Returns a model's config with what the options change in its sections.

    Of another sampler or spacing than the config's, the settings go, but for what was
    given by hand and the number of steps.

    Raises:
      ConfigError: for an option of another sampler.
    """
    name, spacing = options.sampler, options.timesteps
    if spacing is None and "name" not in options.keys("timesteps"):
        asked = name
        if name is None and "name" in options.keys("sampler"):
            asked = config["sampler"]["name"]
        spacing = SPACING.get(asked)
    config = _renamed(config, options, "sampler", name)
    config = _renamed(config, options, "timesteps", spacing, keep=("num_steps",))
    sampler = {"eta": options.eta, "variance": options.variance}
    taken = signature(choose(config, "sampler")).parameters
    for key, value in sampler.items():
        if value is not None and key not in taken:
            called = config["sampler"]["name"]
            raise ConfigError(f"--{key} does not belong to the sampler {called}")
    changes = {
        "sampler": sampler,
        "timesteps": {"num_steps": options.num_steps},
        "denoiser": {"guidance_scale": options.guidance_scale},
    }
    for section, values in changes.items():
        given = {key: value for key, value in values.items() if value is not None}
        config = {**config, section: config.get(section, {}) | given}
    return config


def _renamed(config, options, section, name, keep=()):
    """The config with a section under another name, if one was asked for."""
    current, asked = config.get(section, {}), options.keys(section)
    if name in (None, current.get("name")) and "name" not in asked:
        return {**config, section: current}
    if "" in asked:  # the section was given whole
        asked, keep = {*current}, ()
    name = current.get("name") if name is None else name
    if name == "custom":  # which counts its steps itself
        keep = ()
    kept = {key: current[key] for key in current if key in asked or key in keep}
    return {**config, section: {**kept, "name": name}}


def train_options(config: dict[str, Any]) -> TrainOptions:
    """Reads the section `train`.

    Raises:
      ConfigError: for a key that does not exist, or a number that makes no sense.
    """
    options = call(config.get("train", {}), "train", TrainOptions)
    least = dict.fromkeys(TrainOptions._fields, 1) | {
        "sample_every": 0,
        "snapshot_every": 0,
        "ema_decay": 0,
        "max_skipped": 0,
        "augmentation": 0,
        "deterministic": 0,
        "profile": 0,
    }
    for name, value in options._replace(averages=None, trackers=None)._asdict().items():
        if value is not None and value < least[name]:
            raise ConfigError(
                f"config.train.{name} must be {least[name]} or more, got {value}"
            )
    for name in ("ema_decay", "augmentation"):
        value = getattr(options, name)
        if value is not None and value >= 1:
            raise ConfigError(f"config.train.{name} must be below 1, got {value}")
    for name in options.trackers:
        if name not in TRACKERS:
            raise ConfigError(
                f"config.train.trackers: {unknown('tracker', name, TRACKERS)}"
            )
    return options._replace(averages=_averages(options))


def _averages(options: TrainOptions) -> dict[str, ema.Average]:
    """The further averages by name, of what the config says of them."""
    given, made = dict(options.averages or {}), {}
    if (options.ema_decay is None) != (ema.MAIN in given):
        raise ConfigError(
            f"config.train: {ema.MAIN!r}, the average from which is drawn, is that of "
            "ema_decay, or with ema_decay=None one of averages"
        )
    for name in sorted(given):
        if not name.isidentifier() or name == "raw":
            raise ConfigError(f"config.train.averages: {name!r} is no name for one")
        one = bound({"train.averages": given}, "train.averages", name, ema.AVERAGES, 2)
        made[name] = ema.Average(one.func, tuple(one.keywords.items()))
        step_size = functools.partial(made[name], batch_size=1)
        number = jax.ShapeDtypeStruct((), "int32")
        attempt(f"train.averages.{name}", jax.eval_shape, step_size, number)
    return made


def score_options(config: dict[str, Any]) -> ScoreOptions:
    """Reads the section `evaluation`.

    Raises:
      ConfigError: for a key that does not exist, or a value that makes no sense.
    """
    options = call(config.get("evaluation", {}), "evaluation", ScoreOptions)
    if options.metric not in SIGNS:
        raise ConfigError(
            f"config.evaluation: {unknown('metric', options.metric, SIGNS)}"
        )
    for name, least in (("every", 0), ("num", 2), ("batch_size", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"config.evaluation.{name} must be {least} or more")
    return options
