"""Trains a diffusion model.

  python -m ddpm_jax.train --config configs/digits.py

The same command again goes on from the last checkpoint. Any value of the config can be
changed on the command line, as in --config.optimizer.learning_rate=1e-4.
"""

import argparse
import contextlib
import functools
import os
import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import cli, config, datasets, models, runs
from ddpm_jax import experiment as experiments
from ddpm_jax.config import ConfigError
from ddpm_jax.data import images, pipeline
from ddpm_jax.scoring import progress
from ddpm_jax.training import parallel
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.meter import Meter, NonFiniteError
from ddpm_jax.training.state import make_train_step
from ddpm_jax.training.writers import open_writer


def train(settings: dict[str, Any], workdir: str | os.PathLike) -> int:
    """Trains from where the folder's last checkpoint left off.

    Args:
      settings: a config, as `config.load` gives it.
      workdir: the folder of the run, made if it is not there.

    Returns:
      0, or 128 plus the number of the signal that stopped it; what was done is saved.

    Raises:
      ConfigError: one line that says what to mend.
      OSError: if something cannot be written.
    """
    settings = config.override(settings, ())
    experiment = experiments.build(settings)
    options = experiments.train_options(settings)
    scoring = progress.options_of(settings)
    workdir = Path(workdir)
    changes = runs.changes(workdir, settings)
    batch_fn = datasets.make_batches(settings, options.num_microbatches)
    source = settings.get("init_from")
    begun_from = None
    if source and not runs.has_checkpoint(workdir):
        begun_from = models.begin_from(source, settings, experiment)
    score_params = None
    if scoring.every:
        score_params = progress.make_scorer(settings, experiment, scoring)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        if jax.process_index() == 0:
            enter(runs.lock(workdir))
        checkpoints = Checkpoints(workdir / "checkpoints", options.keep)
        enter(closing(checkpoints))
        latest = checkpoints.latest_step()
        first = latest or 0
        if first >= options.num_steps:
            print(f"{workdir} is already at step {first}: nothing to do")
            return 0
        init_key, train_key = jax.random.split(jax.random.key(settings.get("seed", 0)))
        if latest is not None:
            state = checkpoints.restore(experiment.abstract_state())
        elif begun_from is not None:
            state = experiment.begin(begun_from.params)
            changes = [f"beginning from {source}", *begun_from.notes]
        else:
            state = jax.jit(experiment.init)(init_key)
        state = parallel.replicate(state)  # as steps return it: one program, not two
        if jax.process_index() == 0:
            runs.write_config(workdir, settings)
        writer = enter(closing(open_writer(workdir, first, options.num_steps)))
        begun = f"going on from step {first}" if first else "training"
        writer.line("; ".join([f"{begun} in {workdir}", *changes]))

        def log(step, averages):
            rate = float(experiment.learning_rate(step - 1))
            writer.metrics(step, {**averages, "learning_rate": rate})

        train_step = _train_step(experiment, options)
        save_picture = _save_picture(experiment, options, workdir, writer)
        score = _score(score_params, scoring.metric, writer)
        meter = Meter(options.log_every, log, settings["data"]["batch_size"])
        stop = enter(Stop())
        batches = enter(closing(pipeline.prefetch(batch_fn, first, options.num_steps)))
        for step, batch in enumerate(batches, first + 1):
            state, metrics = train_step(state, batch, train_key)
            last = step == options.num_steps or stop.signal
            save = last or step % options.save_every == 0
            draw = options.sample_every and step % options.sample_every == 0
            judge = scoring.every and step % scoring.every == 0
            try:
                meter.add(step, metrics)
                if save or draw or judge:
                    meter.pause()
            except NonFiniteError as error:
                raise ConfigError(
                    f"{error}; of checkpoints, {checkpoints.listed()}: run again with "
                    "a smaller optimizer.learning_rate or clip_norm"
                ) from error
            writer.advance()
            scores = score(step, state) if judge else None
            if save or scores:
                checkpoints.save(state, scores)
            if draw:
                save_picture(step, state)
            if last:
                meter.write_rest(step)
                break
        if stop.signal:
            writer.line(f"stopped at step {step}; the same command goes on from it")
            return 128 + stop.signal
        writer.line(f"done: step {step} of {workdir}")
        return 0


def _train_step(experiment, options):
    """The training step, on all devices."""
    return parallel.parallel_step(
        make_train_step(
            experiment.loss_fn,
            experiment.tx,
            options.ema_decay,
            options.num_microbatches,
            parallel.AXIS,
        )
    )


def _save_picture(experiment, options, workdir, writer):
    """A function that draws samples from the averaged parameters into a grid."""
    sample_fn = parallel.parallel_map(experiment.sample_fn, options.num_samples)
    keys = experiments.sample_keys(0, options.num_samples)
    labels = experiments.sample_labels(experiment.num_classes, options.num_samples)

    def save_picture(step, state):
        drawn = sample_fn(jax.device_get(state.ema_params), keys, labels)
        picture = images.grid(images.to_uint8(drawn))
        if jax.process_index() == 0:
            images.save_png(workdir / "samples" / f"step_{step:08}.png", picture)
        writer.picture(step, "samples", picture)

    return save_picture


def _score(score_params, metric, writer):
    """A function that scores the averaged parameters and records the score."""

    @functools.cache
    def warn_once(text):
        writer.line(text)

    def score(step, state):
        value = score_params(jax.device_get(state.ema_params))
        writer.metrics(step, {metric: value.value})
        for warning in value.warnings:
            warn_once(f"{metric} of {warning}")
        return progress.records(metric, value)

    return score


class Stop(contextlib.AbstractContextManager):
    """Notes SIGTERM and Ctrl-C, so that a step and its checkpoint can be finished.

    Attributes:
      signal: the number of the signal, or None; a second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.signal = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number, frame):
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step; Ctrl-C again to stop at once", flush=True)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def main(args: argparse.Namespace) -> int:
    """Trains as the command line says."""
    settings = config.load(args.config, args.overrides)
    name = args.config.replace(".py:", "_").removesuffix(".py")
    return train(settings, args.workdir or Path("runs", Path(name).name))


if __name__ == "__main__":
    cli.run(main, cli.parse_config(cli.parser(__doc__)))
