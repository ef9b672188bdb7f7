"""A small model, and the mains called within the process."""

import argparse

import jax
import numpy as np
from plain import NAME

from ddpm_jax import train
from ddpm_jax.cli import command
from ddpm_jax.experiment import build, config

TINY = (
    "network.channels=8",
    "network.channel_mults=1,2",
    "network.num_groups=4",
    "network.label_dropout=0.0",
    "network.learned_variance=True",
    "schedule.num_steps=20",
    "loss={'name': 'hybrid', 'predicts': 'eps'}",
    "sampler={'name': 'ddpm', 'variance': 'learned_range'}",
    "timesteps.num_steps=5",
    "data.batch_size=16",
    "train={'num_steps': 3, 'save_every': 1, 'sample_every': 0, 'log_every': 1}",
    "optimizer={'name': 'adam', 'learning_rate': 1e-3}",
)


def tiny(*changes):
    """The config of a small U-Net."""
    return config.read_config("configs/digits.py", (*TINY, *changes))


def plain(*changes):
    """The same, but for the network."""
    settings = f"'name': '{NAME}', 'num_classes': 10, 'learned_variance': True"
    return tiny(f"network={{{settings}}}", *changes)


def fit(settings, workdir):
    """Trains as a config says."""
    return train.train(build.build(settings), workdir)


def random_params(built, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda x: (0.2 * random.standard_normal(x.shape)).astype(x.dtype)
    return jax.tree.map(draw, built.abstract_state().params)


def call(main, *given):
    """Runs a main within this process."""
    parser = main.add_arguments(command.parser(main.__doc__))
    overrides = [str(g)[9:] for g in given if str(g).startswith("--config.")]
    args = [str(g) for g in given if not str(g).startswith("--config.")]
    args = parser.parse_args(args, argparse.Namespace(overrides=overrides))
    args.overrides = overrides
    return main.main(args)
