"""What tests make once: experiments and programs, within one process."""

import functools

import jax

from ddpm_jax import evaluate, sample, train
from ddpm_jax.experiment import build, load, model


def once(make, key_of):
    """What is a pure function of its key is not made twice within a process.

    Nor is it traced and compiled twice then. Refusals are not kept, and the mains that
    run as processes of their own make everything as ever.
    """
    made = {}

    @functools.wraps(make)
    def made_once(*given):
        key = *key_of(*given), jax.config.jax_enable_x64
        if key not in made:
            made[key] = given, make(*given)  # `given` lives on, so its id is no other's
        return made[key][1]

    return made_once


def sections_of(config):
    """What an experiment is made of; the rest says where, how long, on which images."""
    rest = ("seed", "data", "train", "evaluation", "init_from")
    return (repr({key: value for key, value in config.items() if key not in rest}),)


def share():
    """Has experiments, models and training steps be made once of the same parts."""
    build.build = once(build.build, sections_of)
    shared = once(model.build_model, sections_of)
    for module in (build, model, sample, evaluate, load):
        module.build_model = shared
    train._train_step = once(
        train._train_step,
        lambda run, options: (
            id(run),
            options.ema_decay,
            options.num_microbatches,
            options.max_skipped > 0,
            options.steps_per_call,
        ),
    )
