"""What a visitor of the demo wishes to see drawn: JSON, and checked."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.errors import ConfigError
from ddpm_jax.files import of_machine

MOST_PIXELS = 2**24  # of a picture that is given, before it is made small
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_GUIDANCE = 20


class Offer(NamedTuple):
    """What a model can be asked for.

    Attributes:
      name: of the model.
      image_shape: (height, width, channels).
      classes: their names, none where it knows no classes.
      guided: whether it takes a guidance scale.
      samplers: their names, the model's own first.
      steps: how many it takes by itself.
      most_steps: the most steps.
      most_images: the most images at once.
      guidance_scale: its own.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: Sequence[str]
    guided: bool
    samplers: Sequence[str]
    steps: int
    most_steps: int
    most_images: int
    guidance_scale: float


class Wish(NamedTuple):
    """What is to be drawn.

    Attributes:
      num: how many images.
      seed: of their noise.
      sampler: its name.
      steps: how many.
      label: the class, or None: all in turn, and of a picture nothing is told.
      guidance_scale: 0 unconditional, 1 conditional, or more.
      picture: what to begin with, uint8 [height, width, channels], or None.
      mask: where to paint the picture anew, bool [height, width, 1], or None.
      strength: without a mask, how much of the picture is made anew, 0.01 to 1.
    """

    num: int
    seed: int
    sampler: str
    steps: int
    label: int | None
    guidance_scale: float
    picture: np.ndarray | None
    mask: np.ndarray | None
    strength: float


def read_wish(text: bytes, offer: Offer) -> Wish:
    """Reads a wish; what it does not say is as the model has it.

    Args:
      text: JSON, an object of the names of `Wish`; the picture is a file in base64, the
        mask a text of 0 and 1 for each pixel, row by row, 1 where to paint.
      offer: what the model can do.

    Raises:
      ConfigError: one line that says what to give.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("give the wish as JSON") from error
    if not isinstance(given, dict) or not given.keys() <= {*Wish._fields}:
        raise ConfigError(f"give an object of {', '.join(Wish._fields)}")
    given = {key: value for key, value in given.items() if value is not None}
    classes, label = len(offer.classes), None
    if "label" in given:
        if not classes:
            raise ConfigError("label: this model has no classes")
        label = _whole(given, "label", 0, classes - 1)
    wish = Wish(
        num=_whole(given, "num", 1, offer.most_images, 1),
        seed=_whole(given, "seed", 0, 2**63 - 1, 0),
        sampler=given.get("sampler", offer.samplers[0]),
        steps=_whole(given, "steps", 1, offer.most_steps, offer.steps),
        label=label,
        guidance_scale=_real(
            given, "guidance_scale", 0, MOST_GUIDANCE, offer.guidance_scale
        ),
        picture=_picture(given, offer.image_shape),
        mask=_mask(given, offer.image_shape),
        strength=_real(given, "strength", 0.01, 1, 0.6),
    )
    if wish.sampler not in offer.samplers:
        raise ConfigError(f"sampler must be one of {', '.join(offer.samplers)}")
    if not offer.guided and wish.guidance_scale != offer.guidance_scale:
        raise ConfigError("guidance_scale: this model knows no guidance")
    if wish.picture is None and (wish.mask is not None or "strength" in given):
        raise ConfigError("mask and strength belong to a picture: give one")
    if wish.picture is not None and classes and label is None and not offer.guided:
        raise ConfigError("label: this model must be told what the picture shows")
    return wish


def _whole(given: dict[str, Any], name, low, high, default=None) -> int:
    value = given.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}")
    return value


def _real(given: dict[str, Any], name, low, high, default) -> float:
    value = given.get(name, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low} to {high}")
    return float(value)


def _picture(given: dict[str, Any], image_shape) -> np.ndarray | None:
    if "picture" not in given:
        return None
    height, width, channels = image_shape
    try:
        file = io.BytesIO(base64.b64decode(given["picture"], validate=True))
        pixels = images.read(file, channels, formats=FORMATS, at_most=MOST_PIXELS)
        return images.resize_and_crop(pixels, (height, width))
    except Exception as error:  # decoders of pictures fail in many ways
        if of_machine(error):
            raise
        raise ConfigError(
            f"picture must be a {', '.join(FORMATS)} file in base64, of at most "
            f"{MOST_PIXELS:,} pixels"
        ) from error


def _mask(given: dict[str, Any], image_shape) -> np.ndarray | None:
    if "mask" not in given:
        return None
    (height, width, _), text = image_shape, given["mask"]
    if not isinstance(text, str) or len(text) != height * width or {*text} - {*"01"}:
        raise ConfigError(f"mask must be {height * width} of 0 and 1, row by row")
    if len({*text}) < 2:
        raise ConfigError("mask must be 1 where to paint, and 0 where nothing changes")
    painted = np.frombuffer(text.encode(), np.uint8) == ord("1")
    return painted.reshape(height, width, 1)
