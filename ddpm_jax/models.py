"""Trained models, wherever they are: in the folder of a run, or published elsewhere."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax import config, networks, runs
from ddpm_jax.config import ConfigError
from ddpm_jax.construct import call
from ddpm_jax.experiment import Experiment, build
from ddpm_jax.interop import openai
from ddpm_jax.interop.pretrained import open_pretrained

# What the weights were trained with, though other values would have the same shapes.
READ_WITH = (
    "norm_eps",
    "symmetric_padding",
    "cos_first",
    "frequency_shift",
    "index_scale",
    "num_heads",
    "head_channels",
)


class Model(NamedTuple):
    """A trained model, whose parameters are not read yet.

    Attributes:
      config: what it is.
      load_params: experiment -> the parameters of its network; they must fit.
    """

    config: dict[str, Any]
    load_params: Callable[[Experiment], Any]


def from_run(workdir: str | Path, ema: bool = True, step: int | None = None) -> Model:
    """Opens the model of a run.

    Args:
      workdir: the folder of the run.
      ema: whether to take the averaged parameters or the raw ones.
      step: of the checkpoint, by default the latest.

    Raises:
      ConfigError: if the folder does not hold a run.
    """
    return Model(
        runs.read_config(workdir),
        lambda experiment: runs.load_params(workdir, experiment, ema, step),
    )


class Beginning(NamedTuple):
    """Where a run begins.

    Attributes:
      params: the parameters of its network.
      notes: what they were trained for that this run is not, in words.
    """

    params: Any
    notes: list[str]


def from_pretrained(
    path: str,
    settings: openai.Settings | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Model:
    """Opens a published model.

    Args:
      path: a folder of diffusers, a checkpoint file of ermongroup/ddim or of OpenAI, or
        the name of a model on the Hugging Face hub.
      settings: what a file of OpenAI's code does not say; known for published files.
      image_shape: (height, width, channels), for a folder that does not say.

    Raises:
      OSError: if it cannot be read, or is of a model that our U-Net cannot be.
    """
    opened = open_pretrained(path, settings, image_shape)
    return Model(
        config.override(opened.config, ()),
        lambda experiment: opened.read(experiment.abstract_state().params),
    )


def load_pretrained(
    path: str, overrides=(), settings: openai.Settings | None = None
) -> tuple[Experiment, Any]:
    """Loads a published model, ready for `make_sample_fn`.

    Args:
      path: see `from_pretrained`.
      overrides: changes of its config, such as "sampler={'name': 'ddim'}".
      settings: see `from_pretrained`.

    Returns:
      (experiment, params), as in `experiment.sample_fn(params, keys, labels)`.

    Raises:
      OSError: see `from_pretrained`; and if a tensor is missing, extra or misshapen.
      ConfigError: for an override that does not fit.
    """
    model = from_pretrained(path, settings)
    experiment = build(config.override(model.config, overrides))
    return experiment, model.load_params(experiment)


def begin_from(
    path: str, settings: dict[str, Any], experiment: Experiment
) -> Beginning:
    """Loads the parameters from which a run begins (`config.init_from`).

    Args:
      path: the folder of a run, or as `from_pretrained`.
      settings: the config of the run that begins.
      experiment: built of it.

    Raises:
      ConfigError: if they cannot be read, are of another network, or would be read in
        another way than they were trained.
    """
    try:
        model = from_run(path) if runs.is_run(path) else from_pretrained(path)
        params = model.load_params(experiment)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"config.init_from: {error}") from error
    defaults = inspect.signature(networks.unet).parameters
    for key in READ_WITH:
        default = defaults[key].default
        there = model.config["network"].get(key, default)
        here = settings["network"].get(key, default)
        if there != here:
            raise ConfigError(
                f"config.network.{key} is {here}, but {path} was trained with {there}: "
                f"give --config.network.{key}={there}"
            )
    notes = [
        f"{key} was {there} there and is {here} here"
        for key, (there, here) in config.differences(model.config, settings).items()
        if key.startswith("schedule.") or key == "loss.predicts"
    ]
    return Beginning(params, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which model."""
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--workdir", metavar="DIR", help="the folder of a run")
    one.add_argument(
        "--pretrained",
        metavar="PATH",
        help="a diffusers folder, a checkpoint of ermongroup/ddim or OpenAI, or a name "
        "on the Hugging Face hub, such as google/ddpm-cifar10-32",
    )
    add = parser.add_argument
    add("--weights", choices=["ema", "raw"], help="of a run (default: ema)")
    add("--step", type=int, help="of a run's checkpoint (default: the latest)")
    add(
        "--openai",
        metavar="KEY=VALUE,...",
        help="what an unpublished checkpoint of OpenAI's code does not say, as in "
        "image_size=64,num_heads=4,schedule=cosine,num_steps=4000",
    )


def from_args(args: argparse.Namespace) -> Model:
    """Opens the model that the arguments name, with their overrides of its config.

    Raises:
      ConfigError: for whatever the user can mend.
      OSError: see `from_pretrained`.
    """
    trained = tuple(f"network.{key}" for key in READ_WITH)
    if args.workdir is not None:
        if args.openai is not None:
            raise ConfigError("--openai belongs to --pretrained")
        model = from_run(args.workdir, args.weights != "raw", args.step)
        trained += ("schedule.", "loss.predicts")
    else:
        if args.step is not None or args.weights is not None:
            raise ConfigError("--step and --weights belong to --workdir")
        if runs.is_run(args.pretrained):
            raise ConfigError(f"{args.pretrained} is a run: give it as --workdir")
        settings = _openai_settings(args.openai)
        model = from_pretrained(args.pretrained, settings, _image_shape(args.overrides))
    changed = config.override(model.config, args.overrides)
    for key, (was, _) in config.differences(model.config, changed).items():
        if key.startswith(trained):
            raise ConfigError(f"config.{key}: the model was trained with {was}")
    return model._replace(config=changed)


def _openai_settings(text):
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    given = {key: config.literal(value) for key, _, value in pairs}
    try:
        if "image_size" not in given:
            given = {"image_size": 0, **given}
        settings = call(given, "openai", openai.Settings)
    except ConfigError as error:
        raise ConfigError(str(error).replace("config.openai", "--openai")) from error
    if settings.image_size < 1:
        raise ConfigError("--openai must say the image_size, as in image_size=64")
    return settings


def _image_shape(overrides):
    """The shape of images among overrides, for a model that does not say."""
    given = [text for text in overrides if text.startswith("image_shape=")]
    if not given:
        return None
    shape = config.literal(given[-1].removeprefix("image_shape="))
    return tuple(config.override({"image_shape": shape}, ())["image_shape"])
