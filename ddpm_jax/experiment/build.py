"""The composition root: a config becomes a model and its training here.

Nothing below this folder reads a config; nothing above makes a part by hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.data import images
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.model import Model, build_model
from ddpm_jax.experiment.registry import make, resolved
from ddpm_jax.experiment.sections import attempt, call
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
    """What a config describes, except the data.

    Attributes:
      model: what is trained, without parameters.
      tx: the optimizer.
      learning_rate: as a function of the number of updates.
      loss_fn: (params, host batch, key) -> (loss, metrics).
    """

    model: Model
    tx: optax.GradientTransformation
    learning_rate: Callable
    loss_fn: Callable

    def init(self, key) -> TrainState:
        """Makes the state before the first step."""
        return self.begin(self.model.network.init(key, self.model.image_shape))

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
    model = build_model(config)
    loss_fn = make(config, "loss", model.network.apply, model.schedule)
    end = train_options(config).num_steps if "train" in config else None
    settings = resolved(config, "optimizer", "name", optimizers.OPTIMIZERS)
    tx, learning_rate = call(
        settings, "optimizer", optimizers.make_optimizer, num_steps=end
    )

    def of_batch(params, batch, key):
        return loss_fn(params, _on_device(batch, model.num_classes), key)

    experiment = Experiment(model, tx, learning_rate, of_batch)
    _trace(experiment)
    return experiment


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


def _trace(experiment):
    """Goes through what trains without compiling, so that what fails fails now."""
    params = experiment.model.abstract_params()
    opt_state = attempt("optimizer", jax.eval_shape, experiment.tx.init, params)
    attempt(
        "optimizer", jax.eval_shape, experiment.tx.update, params, opt_state, params
    )
    batch = {
        "image": jax.ShapeDtypeStruct((2, *experiment.model.image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((2,), np.int32),
        "id": jax.ShapeDtypeStruct((2,), np.uint32),
    }
    attempt("loss", jax.eval_shape, experiment.loss_fn, params, batch, random_key(0))


def _on_device(batch, num_classes):
    """A host batch as the loss wants it: float images, labels only if used."""
    prepared = {"image": images.to_float(batch["image"]), "id": batch["id"]}
    return {**prepared, "label": batch["label"]} if num_classes else prepared
