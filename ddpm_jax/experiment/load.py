"""Trained models, wherever they are: in the folder of a run, or published elsewhere."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import code, config, run
from ddpm_jax.experiment.build import Experiment, build
from ddpm_jax.interop import openai
from ddpm_jax.interop.published import open_pretrained

# What the weights were trained with. Other values would not fit, or would have the same
# shapes and another meaning.
READ_WITH = (
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


class Model(NamedTuple):
    """A trained model, whose parameters are not read yet.

    Attributes:
      config: what it is.
      load_params: experiment -> the parameters of its network; they must fit.
      origin: where it is from, as JSON has it.
      notes: what was chosen or assumed, in words.
    """

    config: dict[str, Any]
    load_params: Callable[[Experiment], Any]
    origin: dict[str, Any]
    notes: list[str]


def from_run(
    workdir: str | Path, ema: bool = True, step: int | str | None = None
) -> Model:
    """Opens the model of a run.

    Args:
      workdir: the folder of the run.
      ema: whether to take the averaged parameters or the raw ones.
      step: of the checkpoint, or "best", by default the latest.

    Raises:
      ConfigError: if the folder does not hold a run, or no such checkpoint.
    """
    settings = code.kept(workdir, run.read_config(workdir))
    step = run.find_step(workdir, step)
    weights = "ema" if ema else "raw"
    origin = {"workdir": str(Path(workdir)), "step": step, "weights": weights}
    if data := run.data_of(workdir):
        origin["classes"] = data.classes
    return Model(
        settings,
        lambda experiment: run.load_params(workdir, experiment, ema, step),
        origin,
        [],
    )


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
        {"pretrained": path},
        opened.notes,
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
      ConfigError: for an override that does not fit, and for the folder of a run.
    """
    if run.is_run(path):
        raise ConfigError(f"{path} is a run: ddpm_jax.load reads it")
    model = from_pretrained(path, settings)
    for note in model.notes:
        warnings.warn(note, stacklevel=2)
    experiment = build(config.override(model.config, overrides))
    return experiment, model.load_params(experiment)
