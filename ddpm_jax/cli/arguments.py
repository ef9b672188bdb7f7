"""Arguments that several mains share: which model, and how to sample from it."""

import argparse
import functools

import numpy as np

from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import extractors
from ddpm_jax.experiment import config, load, run
from ddpm_jax.experiment.dataset import Dataset
from ddpm_jax.experiment.load import Trained
from ddpm_jax.experiment.options import SampleOptions
from ddpm_jax.experiment.sections import call
from ddpm_jax.interop import openai
from ddpm_jax.metrics.features.base import Extractor
from ddpm_jax.sampling.draw import sample_labels
from ddpm_jax.training.ema import MAIN


def add_model(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Adds the arguments that say which model; returns the group of which one is."""
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--workdir", metavar="DIR", help="the folder of a run")
    one.add_argument(
        "--pretrained",
        metavar="PATH",
        help="a diffusers folder, a checkpoint of ermongroup/ddim or OpenAI, or a name "
        "on the Hugging Face hub, such as google/ddpm-cifar10-32",
    )
    add = parser.add_argument
    add(
        "--weights",
        type=weights,
        metavar="NAME",
        help="of a run: ema or another of its averages, raw, or a number, the "
        "sigma_rel of an average that is reconstructed of snapshots (default: ema)",
    )
    add("--step", type=_step, help="of a checkpoint, or best (default: the latest)")
    add(
        "--openai",
        metavar="KEY=VALUE,...",
        help="what an unpublished checkpoint of OpenAI's code does not say, as in "
        "image_size=64,num_heads=4,schedule=cosine,num_steps=4000",
    )
    return one


def weights(text: str) -> str | float:
    """Returns the name of weights, or the sigma_rel of an average as a number."""
    try:
        return float(text)
    except ValueError:
        return text


def trained(args: argparse.Namespace, chosen: str | float | None = None) -> Trained:
    """Opens the model that the arguments name, with their overrides of its config.

    Args:
      args: of `add_model`.
      chosen: weights, instead of those that the arguments name.

    Raises:
      ConfigError: for whatever the user can mend.
      OSError: see `load.from_pretrained`.
    """
    chosen = args.weights if chosen is None else chosen
    if args.workdir is not None:
        if args.openai is not None:
            raise ConfigError("--openai belongs to --pretrained")
        chosen = MAIN if chosen is None else chosen
        step = _same_step(args, chosen)
        opened = load.from_run(args.workdir, chosen, step)
    else:
        if args.step is not None or chosen is not None:
            raise ConfigError("--step and --weights belong to --workdir")
        if run.is_run(args.pretrained):
            raise ConfigError(f"{args.pretrained} is a run: give it as --workdir")
        settings = _openai_settings(args.openai)
        opened = load.from_pretrained(
            args.pretrained, settings, _image_shape(args.overrides)
        )
    for note in opened.notes:
        multihost.on_primary(functools.partial(print, note))
    changed = config.override(opened.config, args.overrides)
    return load.read_otherwise(opened, changed)


def _same_step(args, weights):
    """The step of the checkpoint for all processes: a run may be saving meanwhile."""
    with multihost.error_barrier():
        run.read_config(args.workdir)
        step = run.find_step(args.workdir, args.step, weights)
    return int(multihost.all_gather(str(step))[0])


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what to sample, and how."""
    add = parser.add_argument
    add("--seed", type=_seed, default=0, help="default: 0")
    add("--labels", metavar="0,1,2", help="classes, repeated to fill --num")
    add_sampler(parser)


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how to sample."""
    add = parser.add_argument
    add("--guidance_scale", type=float, help="0 unconditional, 1 conditional, or more")
    add("--sampler", help="ddpm, ddim, dpmpp_2m, dpmpp_3m, unipc, heun, plms, …")
    add("--steps", type=int, help="how many (a network call each; of heun, two)")
    add(
        "--timesteps",
        help="trailing, leading, linspace, quadratic, log_snr_uniform or karras "
        "(default: as the config says; for heun karras)",
    )
    add("--eta", type=float, help="of ddim, dpmpp_*: 0 is the ODE, 1 as noisy as ddpm")
    add("--variance", help="of ddpm: fixed_small, fixed_large or learned_range")


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that says how much a device treats at once."""
    parser.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="images at a time on each device, as its memory allows (default: 64)",
    )


def sampling(args: argparse.Namespace) -> SampleOptions:
    """Returns how the arguments say to draw otherwise than the model's config."""
    return SampleOptions(
        args.sampler,
        args.timesteps,
        args.steps,
        args.eta,
        args.variance,
        args.guidance_scale,
        [text.partition("=")[0] for text in args.overrides],
    )


def labels(args: argparse.Namespace, num_classes: int, num: int) -> np.ndarray | None:
    """Returns a class for each of `num` images, None where the model has none.

    Raises:
      ConfigError: for classes that the model has not.
    """
    if args.labels is None:
        return sample_labels(num_classes, num)
    if not num_classes:
        raise ConfigError("--labels: this model has no classes")
    try:
        given = [int(label) for label in args.labels.split(",")]
    except ValueError as error:
        raise ConfigError("--labels must be whole numbers, as in 0,1,2") from error
    if not all(0 <= label < num_classes for label in given):
        raise ConfigError(f"--labels must be within 0 ... {num_classes - 1}")
    return sample_labels(num_classes, num, given)


def add_features(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say by which feature network."""
    add = parser.add_argument
    add(
        "--features",
        metavar="NAME",
        help="inception, classifier, pixels, or FILE.py:FUNCTION, of a function "
        "image_shape -> (params, apply); default: as the metrics ask",
    )
    add("--inception", metavar="FILE", help="its weights (default: downloaded once)")
    add("--convention", help="of inception: tf, pytorch_fid or clean (default: tf)")


def extractor(
    args: argparse.Namespace, name: str, dataset: Dataset | None
) -> Extractor:
    """Opens the feature network of that name, for such images.

    Raises:
      ConfigError: see `extractors.open_extractor`; and for those of another network.
      OSError: if the weights of the Inception network cannot be had.
    """
    for key in ("inception", "convention"):
        if name != "inception" and getattr(args, key) is not None:
            raise ConfigError(f"--{key} belongs to the features inception, not {name}")
    given = args.inception, args.convention or "tf"
    return extractors.open_extractor(name, dataset, *given)


def _step(text):
    if text != "best" and not text.isdigit():
        raise argparse.ArgumentTypeError("must be a whole number or best")
    return text if text == "best" else int(text)


def _seed(text):
    if not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2**63 - 1")
    return int(text)


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
