"""A model to be shared: a folder with its weights, its pictures, and its card.

`ddpm_jax.load` and `--pretrained` read the folder, here or from the Hugging Face hub.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.errors import reason
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.report import Score
from ddpm_jax.experiment.config import without_places
from ddpm_jax.experiment.model import Model
from ddpm_jax.files import atomic_write
from ddpm_jax.interop import own
from ddpm_jax.metrics.features.base import fingerprint
from ddpm_jax.places import fetch

TRAINING = "training.json"


def write_folder(
    folder: Path, model: Model, workdir: Path | None, licence: str | None, name: str
) -> None:
    """Writes a new folder that holds all that others need of a model.

    Args:
      folder: which.
      model: the model, with its parameters.
      workdir: the run that it is of, whose scores and newest picture of samples are
        taken; None for none.
      licence: of the parameters, as the hub calls it, as in "apache-2.0".
      name: how others name it, as in "someone/digits".

    Raises:
      OSError: if it cannot be written, or the network is code.
    """
    own.export(model.sections, model.params, folder / own.FILE)
    scores, pictures = [], []
    if workdir is not None:
        fetch(workdir / "samples")
        pictures = sorted((workdir / "samples").glob("step_*.png"))
        scores = scores_of(workdir / "evaluation.json", model)
    for picture in pictures[-1:]:
        with atomic_write(folder / "samples.png") as partial:
            partial.write_bytes(picture.read_bytes())
    with atomic_write(folder / TRAINING) as partial:
        partial.write_text(json.dumps(without_places(model.config), indent=2) + "\n")
    with atomic_write(folder / "README.md") as partial:
        partial.write_text(card(model, scores, bool(pictures), licence, name))


def scores_of(path: Path, model: Model) -> list[Score]:
    """Returns those of the scores in a file that are of these very parameters.

    Raises:
      OSError: if the file holds anything else.
    """
    try:
        scores = report.load(path) if path.is_file() else []
    except ValueError as error:
        raise OSError(reason(error)) from error
    digest = fingerprint(model.params)
    return [score for score in scores if _params_of(score.protocol) == digest]


def card(
    model: Model, scores: Iterable[Score], has_samples: bool, licence, name: str
) -> str:
    """Returns the card of a model, Markdown with what the hub reads at its head.

    Args:
      model: the model, with its parameters.
      scores: of it.
      has_samples: whether samples.png lies beside it.
      licence: of the parameters, None where it is not said.
      name: how others name it.
    """
    height, width, channels = model.image_shape
    classes = f", of {model.num_classes} classes" if model.num_classes else ""
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    parts, scores = model.protocol(), [*scores]
    labels = ", labels=[0]" if model.num_classes else ""
    lines = [
        "---",
        "library_name: ddpm_jax",
        "pipeline_tag: unconditional-image-generation",
        "tags: [jax, flax, diffusion, ddpm]",
        *([f"license: {licence}"] if licence else []),
        "---",
        f"# {name.rpartition('/')[2]}",
        "",
        f"A diffusion model of images of {height}x{width}x{channels}{classes}: "
        f"{count:,} parameters of the network `{parts['network']['name']}`, which "
        f"predicts {model.predicts}, on the schedule `{parts['schedule']['name']}`.",
        "",
        *(["![Samples, not chosen](samples.png)", ""] if has_samples else []),
        "```sh",
        f"python -m ddpm_jax.sample --pretrained {name} --num 64 --out samples.png",
        "```",
        "",
        "```python",
        "import ddpm_jax",
        "",
        f'model = ddpm_jax.load("{name}")',
        f"pictures = ddpm_jax.draw(model, num=16{labels})  # uint8",
        "```",
        "",
        "## Scores",
        "",
        *(_scores(scores) if scores else ["It was not scored."]),
        "",
        "## Training",
        "",
        f"`{TRAINING}` is the whole config, for a recipe of ddpm_jax. "
        f"By its own settings it is drawn from with {_settings(parts['sampler'])} on "
        f"{len(model.timesteps) - 1} times, {_settings(parts['timesteps'])}.",
        "",
        f"The parameters are under {licence}." if licence else "No licence is given.",
    ]
    return "\n".join(lines) + "\n"


def _scores(scores):
    """The table, and of each metric what decides it."""
    decided = {}
    for score in scores:
        features = score.protocol.get("features", {}).get("name")
        by = f", by features of {features}" if features else ""
        num = score.protocol.get("num")
        decided[score.metric] = (
            f"- {score.metric}: of {num:,} images{by}" if num else ""
        )
    return ["```", report.table(scores), "```", "", *filter(None, decided.values())]


def _settings(section):
    others = (f"{k}={v}" for k, v in section.items() if k not in ("name", "num_steps"))
    return " ".join([f"`{section['name']}`", *others])


def _params_of(protocol: dict[str, Any]) -> str | None:
    """The fingerprint of the parameters that a score is of."""
    found = protocol.get("params")
    for each in protocol.values():
        if found is None and isinstance(each, dict):
            found = _params_of(each)
    return found
