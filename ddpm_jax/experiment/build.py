"""The composition root: a config becomes a model and its training here.

Nothing below this folder reads a config; nothing above makes a part by hand.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.data import images
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.config import override
from ddpm_jax.experiment.cost import flops, program_of
from ddpm_jax.experiment.dataset import Dataset, make_dataset
from ddpm_jax.experiment.model import DECIDE, Model, build_model, make_loss
from ddpm_jax.experiment.options import ScoreOptions, score_options, train_options
from ddpm_jax.experiment.registry import resolved, same
from ddpm_jax.experiment.sections import attempt, call
from ddpm_jax.training import augmentation, ema, optimizers
from ddpm_jax.training.keys import random_key
from ddpm_jax.training.loop import TrainOptions
from ddpm_jax.training.step import TrainState, init_state, make_train_step


class Experiment(NamedTuple):
    """What a config describes.

    Attributes:
      config: the config, whole.
      model: what is trained, without parameters.
      dataset: its images, which are not opened yet.
      loss_fn: (params, host batch, key) -> (loss, metrics).
      tx: the optimizer.
      learning_rate: as a function of the number of updates.
      training: for how long, and what is done between steps; None where the config does
        not say.
      scoring: scores while training.
      seed: of parameters, noise and the order of the images.
      init_from: the model whose parameters a run begins with, or None.
    """

    config: dict[str, Any]
    model: Model
    dataset: Dataset
    loss_fn: Callable
    tx: optax.GradientTransformation
    learning_rate: Callable
    training: TrainOptions | None
    scoring: ScoreOptions
    seed: int = 0
    init_from: str | None = None

    @property
    def keys(self) -> tuple[jax.Array, jax.Array]:
        """Those of the first parameters and of training."""
        return tuple(jax.random.split(random_key(self.seed)))

    def init(self, key) -> TrainState:
        """Makes the state before the first step."""
        return self.begin(self.model.init(key))

    def begin(self, params) -> TrainState:
        """Makes the state before the first step, from parameters trained before."""
        averages = {ema.MAIN} if self.training is None else self.training.averaging
        return init_state(params, self.tx, averages)

    def abstract_state(self) -> TrainState:
        """Returns the shapes of the state, without computing anything."""
        return jax.eval_shape(self.init, random_key(0))

    def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a host batch of so many images."""
        shape = jax.ShapeDtypeStruct
        return {
            "image": shape((size, *self.model.image_shape), np.uint8),
            "label": shape((size,), np.int32),
            "id": shape((size,), np.uint32),
        }


def build(config: dict[str, Any]) -> Experiment:
    """Makes an experiment of a config, and checks all but a step: see `check`.

    Raises:
      ConfigError: one line that says which key is wrong, and how.
    """
    config = override(config, ())
    training = train_options(config) if "train" in config else None
    deciding = {key: config[key] for key in (*DECIDE, "optimizer") if key in config}
    deciding["num_steps"] = None if training is None else training.num_steps
    deciding["augmentation"] = 0.0 if training is None else training.augmentation
    model, *trained_by = same(_trained_by, deciding)
    experiment = Experiment(
        config,
        dataclasses.replace(model, config=config),
        make_dataset(config),
        *trained_by,
        training=training,
        scoring=score_options(config),
        seed=config.get("seed", 0),
        init_from=config.get("init_from"),
    )
    params = experiment.model.abstract_params()
    attempt("optimizer", jax.eval_shape, experiment.tx.init, params)
    return experiment


def _trained_by(config):
    """(model, loss_fn, tx, learning_rate) of what decides them in a config."""
    model = build_model(config)
    loss_fn = make_loss(config, model)
    settings = resolved(config, "optimizer", "name", optimizers.OPTIMIZERS)
    end = config["num_steps"]
    tx, learning_rate = call(
        settings, "optimizer", optimizers.make_optimizer, num_steps=end
    )

    augmented = config["augmentation"]
    if augmented and model.network.augmentation != augmentation.NUM_LABELS:
        raise ConfigError(
            "config.train.augmentation needs a network that is told of it, such as "
            f"ddpmpp with config.network.augmentation={augmentation.NUM_LABELS}: "
            "samples would be augmented otherwise"
        )

    def of_batch(params, batch, key):
        batch = _on_device(batch, model.num_classes)
        if augmented:
            batch = _augmented(batch, key, augmented)
        return loss_fn(params, batch, key)

    return model, of_batch, tx, learning_rate


def train_step(experiment: Experiment) -> Callable:
    """Makes the training step of a device, which `distributed.devices` maps over all.

    Its metrics are those of `training.step.make_train_step` and "learning_rate", which
    is known where the step is taken.
    """
    options = experiment.training
    return _train_step(
        experiment.loss_fn,
        experiment.tx,
        experiment.learning_rate,
        tuple(options.averaging.items()),
        experiment.dataset.batch_size,
        options.num_microbatches,
        options.max_skipped > 0,
    )


@functools.lru_cache(maxsize=8)
def _train_step(loss_fn, tx, rate_fn, averages, batch_size, num_microbatches, skips):
    """The step of these; for the same ones the same, so that it is traced once."""
    step_sizes = {
        name: functools.partial(average, batch_size=batch_size)
        for name, average in averages
    }
    take = make_train_step(
        loss_fn, tx, step_sizes, num_microbatches, devices.AXIS, skip_nonfinite=skips
    )

    def step(state, batch, key):
        new, metrics = take(state, batch, key)
        rate = jnp.asarray(rate_fn(state.step), jnp.float32)
        return new, {**metrics, "learning_rate": rate}

    return step


class Checked(NamedTuple):
    """A training step that was gone through.

    Attributes:
      image_flops: operations of its products and convolutions for each image, with
        those of the gradient.
      compile: compiles it, see `devices.TracedSteps`.
    """

    image_flops: int
    compile: Callable[[], None]


def check(experiment: Experiment) -> Checked:
    """Goes through the training step without compiling it, so that what fails, fails.

    Where the devices here can share a batch, it is the program that they will be given,
    whose first call does not trace it again.

    Raises:
      ConfigError: what the loss, or the network in it, refuses.
    """
    key, options = experiment.keys[1], experiment.training
    size, parts = experiment.dataset.batch_size, options.num_microbatches
    if size % (jax.device_count() * parts):
        params, batch = experiment.model.abstract_params(), experiment.abstract_batch(2)
        gradient = jax.grad(experiment.loss_fn, has_aux=True)
        program = attempt("loss", program_of, gradient, params, batch, key)
        return Checked(flops(program) // 2, lambda: None)
    most, state = options.steps_per_call or 1, experiment.abstract_state()
    batch = experiment.abstract_batch(size // jax.process_count())
    step = train_step(experiment)
    try:
        traced = attempt("loss", devices.trace_steps, step, most, state, batch, key)
    except ConfigError:  # unless it is not the loss that refuses
        update, params = experiment.tx.update, state.params
        attempt("optimizer", jax.eval_shape, update, params, state.opt_state, params)
        raise
    return Checked(flops(traced.program) * jax.device_count() // size, traced.compile)


def _on_device(batch, num_classes):
    """A host batch as the loss wants it: float images, labels only if used."""
    prepared = {"image": images.to_float(batch["image"]), "id": batch["id"]}
    return {**prepared, "label": batch["label"]} if num_classes else prepared


def _augmented(batch, key, probability):
    """A batch with its images augmented, and what was done to each."""

    def key_of(i):
        """Not 0 to 2 of an example's, which are the loss's."""
        return jax.random.fold_in(jax.random.fold_in(key, i), 3)

    keys = jax.vmap(key_of)(batch["id"])
    augmented, told = augmentation.augment(batch["image"], keys, probability)
    return {**batch, "image": augmented, "augmentation": told}
