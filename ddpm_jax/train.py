"""Trains a diffusion model.

  python -m ddpm_jax.train --config configs/digits.py

The same command again goes on from the last checkpoint. Any value of the config can be
changed on the command line, as in --config.optimizer.learning_rate=1e-4.
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import cli, config
from ddpm_jax import experiment as experiments
from ddpm_jax.config import ConfigError
from ddpm_jax.data import images, pipeline
from ddpm_jax.training import parallel
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.meter import Meter, NonFiniteError
from ddpm_jax.training.state import make_train_step
from ddpm_jax.training.writers import open_writer

# What may change when a run goes on; anything else would make it another run.
MAY_CHANGE = {
    "data.data_dir",
    "train.num_steps",
    "train.log_every",
    "train.save_every",
    "train.sample_every",
    "train.num_samples",
    "train.keep",
}


def train(settings: dict[str, Any], workdir: str | os.PathLike) -> int:
    """Trains from where the folder's last checkpoint left off.

    Args:
      settings: a config, as `config.load` gives it.
      workdir: the folder of the run, made if it is not there.

    Returns:
      0, or 128 plus the number of the signal that stopped it; what was done is saved.

    Raises:
      ConfigError: one line that says what to mend.
    """
    experiment = experiments.build(settings)
    options = experiments.train_options(settings)
    workdir = Path(workdir)
    check_same_config(workdir, settings)
    batch_fn = experiments.make_batches(settings, options)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints", options.keep)
    first = checkpoints.latest_step() or 0
    if jax.process_index() == 0:
        write_config(workdir, settings)
    if first >= options.num_steps:
        print(f"{workdir} is already at step {first}: nothing to do")
        checkpoints.close()
        return 0
    writer = open_writer(workdir, first, options.num_steps)

    init_key, train_key = jax.random.split(jax.random.key(settings.get("seed", 0)))
    if first:
        state = checkpoints.restore(experiment.abstract_state())
        writer.line(f"going on from step {first} in {workdir}")
    else:
        state = jax.jit(experiment.init)(init_key)
        writer.line(f"training in {workdir}")
    train_step = parallel.parallel_step(
        make_train_step(
            experiment.loss_fn,
            experiment.tx,
            options.ema_decay,
            options.num_microbatches,
            parallel.AXIS,
        )
    )
    sample_fn = parallel.parallel_sample(experiment.sample_fn, options.num_samples)
    keys = experiments.sample_keys(0, options.num_samples)
    labels = experiments.sample_labels(experiment.num_classes, options.num_samples)

    def log(step, averages):
        rate = float(experiment.learning_rate(step - 1))
        writer.metrics(step, {**averages, "learning_rate": rate})

    def save_picture(step, params):
        picture = images.grid(images.to_uint8(sample_fn(params, keys, labels)))
        images.save_png(workdir / "samples" / f"step_{step:08}.png", picture)
        writer.picture(step, "samples", picture)

    meter = Meter(options.log_every, log, settings["data"]["batch_size"])
    stop = Stop()
    batches = pipeline.prefetch(batch_fn, first, options.num_steps)
    step = first
    try:
        for step, batch in enumerate(batches, first + 1):
            state, metrics = train_step(state, batch, train_key)
            meter.add(step, metrics)
            writer.advance()
            done = step == options.num_steps or stop.signal
            if done or step % options.save_every == 0:
                meter.finish()
                checkpoints.save(state)
            if options.sample_every and step % options.sample_every == 0:
                save_picture(step, jax.device_get(state.ema_params))
            if stop.signal:
                writer.line(f"stopped at step {step}; the same command goes on from it")
                break
    except NonFiniteError as error:
        raise ConfigError(
            f"{error}; the last good checkpoint is of step "
            f"{checkpoints.latest_step()}: try a smaller learning_rate or clip_norm"
        ) from error
    finally:
        batches.close()
        checkpoints.close()
        writer.close()
    return 128 + stop.signal if stop.signal else 0


class Stop:
    """Notes SIGTERM and Ctrl-C, so that a step and its checkpoint can be finished.

    Attributes:
      signal: the number of the signal, or None; a second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.signal = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check_same_config(workdir: Path, settings: dict[str, Any]) -> None:
    """Refuses to go on with a run of another config.

    Raises:
      ConfigError: naming what differs.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    changes = config.differences(json.loads(path.read_text()), settings)
    changes = [
        f"{key} is {old} there and {new} here"
        for key, (old, new) in changes.items()
        if key not in MAY_CHANGE
    ]
    if changes:
        raise ConfigError(
            f"{workdir} holds a run of another config ({'; '.join(changes)}): "
            "choose another --workdir"
        )


def write_config(workdir: Path, settings: dict[str, Any]) -> None:
    """Writes the config of a run, whole or not at all."""
    partial = workdir / "config.json.partial"
    partial.write_text(json.dumps(settings, indent=2) + "\n")
    partial.replace(workdir / "config.json")


def main(args: argparse.Namespace) -> int:
    """Trains as the command line says."""
    settings = config.load(args.config, args.overrides)
    name = args.config.replace(".py:", "_").removesuffix(".py")
    return train(settings, args.workdir or Path("runs", Path(name).name))


if __name__ == "__main__":
    cli.run(main, cli.parse_config(cli.parser(__doc__)))
