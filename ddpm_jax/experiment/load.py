"""Trained models, wherever they are: in the folder of a run, or published elsewhere."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import code, run
from ddpm_jax.experiment.config import differences, override
from ddpm_jax.experiment.dataset import Dataset, make_dataset
from ddpm_jax.experiment.model import Model, build_model
from ddpm_jax.experiment.options import SampleOptions, with_sampling
from ddpm_jax.interop import openai
from ddpm_jax.interop.published import open_published
from ddpm_jax.places import bring, readable
from ddpm_jax.training.ema import MAIN

# What the weights were trained with. Other values would not fit, or would have the same
# shapes and another meaning.
TRAINED_WITH = (
    "channels",
    "channel_mults",
    "num_res_blocks",
    "scale_shift",
    "residual_resample",
    "norm_eps",
    "symmetric_padding",
    "cos_first",
    "frequency_shift",
    "index_scale",
    "num_heads",
    "head_channels",
    "num_groups",
)


class Trained(NamedTuple):
    """A trained model, whose parameters are not read yet.

    Attributes:
      config: what it is.
      load_params: model -> the parameters of its network; they must fit.
      origin: where it is from, as JSON has it.
      notes: what was chosen or assumed, in words.
    """

    config: dict[str, Any]
    load_params: Callable[[Model], Any]
    origin: dict[str, Any]
    notes: list[str]

    @property
    def dataset(self) -> Dataset:
        """The images that it was trained on, or that its config was given."""
        return make_dataset(self.config)

    @property
    def num_classes(self) -> int:
        """How many classes it knows, 0 where it is unconditional."""
        return self.config.get("network", {}).get("num_classes", 0)

    @property
    def has_null(self) -> bool:
        """Whether it knows a class that means none."""
        dropped = self.config.get("network", {}).get("label_dropout")
        return bool(self.num_classes and dropped)

    @property
    def variance(self) -> str:
        """That of its reverse steps: learned, or else as its sampler has it."""
        if self.config["network"].get("learned_variance"):
            return "learned_range"
        return self.config["sampler"].get("variance", "fixed_small")

    def model(
        self, options: SampleOptions | None = None, like: Model | None = None
    ) -> Model:
        """Makes the model, without parameters.

        Args:
          options: how it is to draw otherwise than its config says.
          like: the model made before, to draw otherwise; its network is taken.

        Raises:
          ConfigError: see `build_model`.
        """
        config = self.config
        if options is not None:
            config = with_sampling(config, options)
        return build_model(config, like)


def from_run(
    workdir: str | Path,
    weights: str | float = MAIN,
    step: int | str | None = None,
) -> Trained:
    """Opens the model of a run.

    Args:
      workdir: the folder of the run.
      weights: which of them, see `run.load_params`.
      step: of the checkpoint, or "best", by default the latest.

    Raises:
      ConfigError: if the folder does not hold a run, or no such checkpoint.
    """
    workdir = bring(workdir)
    config = code.kept(workdir, run.read_config(workdir))
    step = run.find_step(workdir, step, weights)
    called = f"sigma_rel {weights}" if isinstance(weights, float) else weights
    origin = {"workdir": readable(str(workdir)), "step": step, "weights": called}
    if data := run.data_of(workdir):
        origin["classes"] = data.classes
    return Trained(
        config,
        lambda model: run.load_params(workdir, model, weights, step),
        origin,
        [],
    )


def from_pretrained(
    path: str,
    settings: openai.Settings | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Trained:
    """Opens a published model.

    Args:
      path: a folder of diffusers, a checkpoint file of ermongroup/ddim or of OpenAI, or
        the name of a model on the Hugging Face hub.
      settings: what a file of OpenAI's code does not say; known for published files.
      image_shape: (height, width, channels), for a folder that does not say.

    Raises:
      OSError: if it cannot be read, or is of a model that our U-Net cannot be.
    """
    opened = open_published(path, settings, image_shape)
    return Trained(
        override(opened.config, ()),
        lambda model: opened.read(model.abstract_params()),
        {"pretrained": path},
        opened.notes,
    )


def load(
    path: str | Path,
    overrides: Sequence[str] | dict[str, Any] = (),
    ema: bool | str | float = True,
    step: int | str | None = None,
    settings: openai.Settings | None = None,
) -> Model:
    """Loads a trained model with its parameters, wherever it is.

    Args:
      path: the folder of a run, or a published model as in `from_pretrained`; of both,
        also its address in a bucket, such as gs://bucket/runs/cifar.
      overrides: changes of its config, such as "sampler.name=ddpm", of what does not
        touch the parameters; or a whole config.
      ema: of a run, whether to take the averaged parameters or the raw ones; or the
        name of another average, or the sigma_rel of one that is reconstructed of the
        run's snapshots.
      step: of a run's checkpoint, or "best", by default the latest.
      settings: of a published model, see `from_pretrained`.

    Returns:
      The model, as in `model.sample_fn(model.params, keys, labels)`.

    Raises:
      ConfigError: for an override that does not fit, and if a folder does not hold a
        run, or no such checkpoint.
      OSError: see `from_pretrained`; and if a tensor is missing, extra or misshapen.
    """
    path = bring(path)
    if _is_of_run(path):
        if settings is not None:
            raise ConfigError(f"{path} is a run: settings are of published models")
        if isinstance(ema, bool):
            ema = MAIN if ema else "raw"
        trained = from_run(path, ema, step)
    else:
        if step is not None or ema is not True:
            raise ConfigError(f"{path} is no run: ema and step are of runs")
        trained = from_pretrained(str(path), settings)
    for note in trained.notes:
        warnings.warn(note, stacklevel=2)
    if not isinstance(overrides, dict):
        overrides = override(trained.config, overrides)
    model = read_otherwise(trained, overrides).model()
    return dataclasses.replace(model, params=trained.load_params(model))


def read_otherwise(trained: Trained, config: dict[str, Any]) -> Trained:
    """Returns a trained model that is read by another config than its own.

    Raises:
      ConfigError: if that would give its parameters another meaning.
    """
    fixed = tuple(f"network.{key}" for key in TRAINED_WITH)
    if "workdir" in trained.origin:  # a published model may not say it all
        fixed += ("schedule.", "loss.predicts")
    for key, (was, _) in differences(trained.config, config).items():
        if key.startswith(fixed):
            raise ConfigError(f"config.{key}: the model was trained with {was}")
    return trained._replace(config=config)


def load_pretrained(
    path: str, overrides=(), settings: openai.Settings | None = None
) -> Model:
    """Loads a published model, as `load` does now, with a warning that says so."""
    warnings.warn("ddpm_jax.load loads all models", FutureWarning, stacklevel=2)
    return load(path, overrides, settings=settings)


def _is_of_run(folder):
    """Whether a path is that of a run, or at least not of a published model."""
    listed = folder / "config.json"
    if listed.is_file():
        return "_class_name" not in listed.read_text()
    return folder.is_dir() and (folder / "checkpoints").is_dir()
