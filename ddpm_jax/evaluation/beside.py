"""Beside training's steps: pictures and scores. What fails here ends no training."""

import contextlib
import functools

import jax

from ddpm_jax.data import images
from ddpm_jax.distributed import devices, multihost
from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.evaluation import online
from ddpm_jax.experiment.model import Model
from ddpm_jax.sampling.draw import sample_keys, sample_labels


@contextlib.contextmanager
def late(what, step, tracker):
    """A record, picture or score that fails is told, and training goes on.

    Where there are several processes, only what fails on all of them, or after all that
    they do together: no process may miss what the others wait for.
    """
    try:
        yield
    except Exception as error:  # nothing that comes after a step may end a training
        expected = isinstance(error, (ConfigError, OSError, ValueError))
        if jax.process_count() > 1 and not expected:
            raise
        kind = "" if expected else f"{type(error).__name__}: "
        said = f"{kind}{one_line(error)}"[:300]
        tracker.line(f"no {what} of step {step} ({said}); training goes on")


def make_picture(model: Model, options, workdir, tracker):
    """A function that draws samples from the averaged parameters into a grid."""
    sample_fn = devices.parallel_map(model.picture_fn, options.num_samples)
    keys = sample_keys(0, options.num_samples)
    labels = sample_labels(model.num_classes, options.num_samples)

    def save_picture(step, state):
        picture = images.grid(sample_fn(state.ema_params, keys, labels))
        path = workdir / "samples" / f"step_{step:08}.png"
        multihost.on_primary(lambda: images.save_png(path, picture))
        tracker.picture(step, "samples", picture)

    return save_picture


def make_score(score_params, metric, tracker):
    """A function that scores the averaged parameters and records the score."""

    @functools.cache
    def warn_once(text):
        tracker.line(text)

    def score(step, state):
        value = score_params(state.ema_params)
        tracker.metrics(step, {metric: value.value})
        for warning in value.warnings:
            warn_once(f"{metric} of {warning}")
        return online.records(metric, value)

    return score
