"""The composition root: a config becomes a model and its training here.

Below this file and `datasets` nothing reads a config; above, nothing makes a part by
hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import networks
from ddpm_jax.data import images
from ddpm_jax.diffusion import denoisers, guidance, samplers, schedules, transforms
from ddpm_jax.diffusion import timesteps as timesteps_module
from ddpm_jax.diffusion.samplers import loop
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.registry import choose, make, resolved
from ddpm_jax.experiment.sections import attempt, call, signature
from ddpm_jax.training import optimizers
from ddpm_jax.training.keys import random_key
from ddpm_jax.training.step import TrainState, init_state, make_train_step


class TrainOptions(NamedTuple):
    """The section `train` of a config.

    Attributes:
      num_steps: the step to train to.
      ema_decay: decay of the moving average of the parameters.
      num_microbatches: parts of a batch gone through in turn, to save memory.
      log_every: steps between records.
      save_every: steps between checkpoints; the last is always saved.
      sample_every: steps between pictures of samples, 0 for none.
      num_samples: images in such a picture.
      keep: how many checkpoints to keep.
      max_skipped: how many steps that are not finite may change nothing.
      timeout: seconds without a step after which a run that hangs ends.
      steps_per_call: the most steps that the devices are given at once, see
        `devices.parallel_steps`; by default 1, and on accelerators of several
        processes as many, up to 8, as hide what a call costs their hosts. More than 1
        is slow on a CPU, whose XLA runs convolutions of a loop on one core, and rounds
        otherwise. Calls end where something is saved or drawn.
      deterministic: whether GPUs give the same bits each time, as others do anyway.
    """

    num_steps: int
    ema_decay: float = 0.9999
    num_microbatches: int = 1
    log_every: int = 100
    save_every: int = 5000
    sample_every: int = 5000
    num_samples: int = 64
    keep: int = 3
    max_skipped: int = 0
    timeout: float = 1800
    steps_per_call: int | None = None
    deterministic: bool = False


class Experiment(NamedTuple):
    """Everything that a config describes, except the data.

    Attributes:
      schedule: the noise schedule.
      network: the network, as two functions.
      predicts: what it predicts: "eps", "x_0" or "v".
      image_shape: (height, width, channels).
      num_classes: number of classes, 0 where unconditional.
      denoiser: (params, labels or None) -> the denoiser, clipped and guided as the
        config says, that samplers call as (x_t, t).
      sampler: the config's sampler.
      timesteps: the times that it visits, ending in 0.
      tx: the optimizer.
      learning_rate: as a function of the number of updates.
      loss_fn: (params, host batch, key) -> (loss, metrics).
      sample_fn: (params, keys, labels or None) -> images, with all of these.
      picture_fn: the same as uint8 pixels, a quarter of what leaves the devices.
    """

    schedule: schedules.Schedule
    network: networks.Network
    predicts: str
    image_shape: tuple[int, int, int]
    num_classes: int
    denoiser: Callable[..., denoisers.Denoiser]
    sampler: samplers.Sampler
    timesteps: timesteps_module.Timesteps
    tx: optax.GradientTransformation
    learning_rate: Callable
    loss_fn: Callable
    sample_fn: Callable
    picture_fn: Callable

    @property
    def network_calls(self) -> int:
        """How many a sample takes; guidance makes one call of twice the batch."""
        return self.sampler.calls * (len(self.timesteps) - 2) + 1

    def init(self, key) -> TrainState:
        """Makes the state before the first step."""
        return self.begin(self.network.init(key, self.image_shape))

    def begin(self, params) -> TrainState:
        """Makes the state before the first step, from parameters trained before."""
        return init_state(params, self.tx)

    def abstract_state(self) -> TrainState:
        """Returns the shapes of the state, without computing anything."""
        return jax.eval_shape(self.init, random_key(0))


def build(config: dict[str, Any]) -> Experiment:
    """Makes an experiment of a config, and checks all of it before anything compiles.

    Raises:
      ConfigError: one line that says which key is wrong, and how.
    """
    image_shape = tuple(config["image_shape"])
    num_classes = config.get("network", {}).get("num_classes", 0)
    schedule = make_schedule(config)
    network = make(config, "network")
    predicts = config.get("loss", {}).get("predicts", "eps")
    loss_fn = make(config, "loss", network.apply, schedule)
    end = train_options(config).num_steps if "train" in config else None
    settings = resolved(config, "optimizer", "name", optimizers.OPTIMIZERS)
    tx, learning_rate = call(
        settings, "optimizer", optimizers.make_optimizer, num_steps=end
    )
    sampler = make(config, "sampler", schedule)
    timesteps = make(config, "timesteps", schedule)
    has_null = bool(num_classes and config["network"].get("label_dropout"))
    null = num_classes if has_null else None
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
    experiment = Experiment(
        schedule=schedule,
        network=network,
        predicts=predicts,
        image_shape=image_shape,
        num_classes=num_classes,
        denoiser=loop.make_denoiser(network.apply, schedule, **parts),
        sampler=sampler,
        timesteps=timesteps,
        tx=tx,
        learning_rate=learning_rate,
        loss_fn=lambda params, batch, key: loss_fn(
            params, _on_device(batch, num_classes), key
        ),
        sample_fn=sample_fn,
        picture_fn=lambda *given: images.to_uint8(sample_fn(*given)),
    )
    _trace(experiment)
    return experiment


def make_schedule(config: dict[str, Any]) -> schedules.Schedule:
    """Makes the schedule of a config.

    Raises:
      ConfigError: see `build`.
    """
    section = dict(config.get("schedule", {}))
    rescale = section.pop("zero_terminal_snr", False)
    if not isinstance(rescale, bool):
        raise ConfigError(
            f"config.schedule.zero_terminal_snr must be True or False, got {rescale!r}"
        )
    config = {**config, "schedule": section}
    schedule = make(config, "schedule")
    if rescale:
        schedule = attempt("schedule", schedules.zero_terminal_snr, schedule)
    return schedule


def complete(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the sections that decide samples, with the defaults of what they name."""
    sections = ("schedule", "network", "loss", "sampler", "timesteps")
    called = {section: choose(config, section) for section in sections}
    called["denoiser"] = transforms.make_transform
    return {
        name: {
            key: parameter.default
            for key, parameter in signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        | config.get(name, {})
        for name, function in called.items()
    }


def train_options(config: dict[str, Any]) -> TrainOptions:
    """Reads the section `train`.

    Raises:
      ConfigError: for a key that does not exist, or a number that makes no sense.
    """
    options = call(config.get("train", {}), "train", TrainOptions)
    least = dict.fromkeys(TrainOptions._fields, 1) | {
        "sample_every": 0,
        "ema_decay": 0,
        "max_skipped": 0,
        "deterministic": 0,
    }
    for name, value in options._asdict().items():
        if value is not None and value < least[name]:
            raise ConfigError(
                f"config.train.{name} must be {least[name]} or more, got {value}"
            )
    if options.ema_decay >= 1:
        raise ConfigError(
            f"config.train.ema_decay must be below 1, got {options.ema_decay}"
        )
    return options


def train_step(experiment: Experiment, options: TrainOptions) -> Callable:
    """Makes the training step of a device, which `distributed.devices` maps over all.

    Its metrics are those of `training.step.make_train_step` and "learning_rate", which
    is known where the step is taken.
    """
    take = make_train_step(
        experiment.loss_fn,
        experiment.tx,
        options.ema_decay,
        options.num_microbatches,
        devices.AXIS,
        skip_nonfinite=options.max_skipped > 0,
    )

    def step(state, batch, key):
        new, metrics = take(state, batch, key)
        rate = jnp.asarray(experiment.learning_rate(state.step), jnp.float32)
        return new, {**metrics, "learning_rate": rate}

    return step


def sample_labels(num_classes: int, num: int, labels=None) -> np.ndarray | None:
    """Returns a label for each of `num` images: all classes in turn, or those given.

    Raises:
      ValueError: for labels that are no classes, or none at all.
    """
    if num_classes == 0:
        return None
    labels = np.arange(num_classes) if labels is None else np.asarray(labels)
    if not labels.size:
        raise ValueError("give at least one label, or None for all classes")
    networks.check_labels(labels, num_classes)
    return np.resize(labels, num)


def sample_keys(seed: int, num: int) -> jax.Array:
    """Returns a key for each image; image i has the same one whatever `num`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(random_key(seed), np.arange(num))


def _trace(experiment):
    """Goes through all programs without compiling, so that what fails fails now."""
    params = attempt(
        "network",
        jax.eval_shape,
        lambda: experiment.network.init(random_key(0), experiment.image_shape),
    )
    opt_state = attempt("optimizer", jax.eval_shape, experiment.tx.init, params)
    attempt(
        "optimizer", jax.eval_shape, experiment.tx.update, params, opt_state, params
    )
    batch = {
        "image": jax.ShapeDtypeStruct((2, *experiment.image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((2,), np.int32),
        "id": jax.ShapeDtypeStruct((2,), np.uint32),
    }
    key = random_key(0)
    attempt("loss", jax.eval_shape, experiment.loss_fn, params, batch, key)
    labels = batch["label"] if experiment.num_classes else None
    keys = jax.random.split(key, 2)
    attempt("sampler", jax.eval_shape, experiment.sample_fn, params, keys, labels)


def _on_device(batch, num_classes):
    """A host batch as the loss wants it: float images, labels only if used."""
    prepared = {"image": images.to_float(batch["image"]), "id": batch["id"]}
    return {**prepared, "label": batch["label"]} if num_classes else prepared
