"""What `sample` draws: from noise, or from pictures that are there already.

A task says where a walk begins, and what is made of the model's denoiser and sampler
on the way; the walk itself is `samplers.sample`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import images
from ddpm_jax.diffusion import editing, inverse, schedules, timesteps
from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.samplers import Sampler, loop
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.model import Model


class Task(NamedTuple):
    """A way to draw images.

    Attributes:
      given: what each image is drawn from, a tree of arrays [num, ...], or None.
      timesteps: the times to visit.
      begin: (keys, given) -> (images at the first time, keys for the steps).
      sampler: (sampler, given) -> the sampler to walk with.
      denoiser: (denoiser, given) -> the denoiser to ask.
    """

    given: Any
    timesteps: timesteps.Timesteps
    begin: Callable
    sampler: Callable[[Sampler, Any], Sampler] = lambda sampler, given: sampler
    denoiser: Callable[[Denoiser, Any], Denoiser] = lambda denoiser, given: denoiser


def generate(model: Model) -> Task:
    """Plain sampling."""
    return Task(
        None,
        model.timesteps,
        lambda keys, given: loop.draw_prior(keys, model.image_shape),
    )


def img2img(model: Model, pictures: np.ndarray, strength: float) -> Task:
    """Pictures made anew from a noisy version of them (SDEdit; img2img).

    Args:
      model: the model.
      pictures: uint8 [num, height, width, channels].
      strength: how much is made anew, in (0, 1]: the walk begins at this share of T.

    Raises:
      ConfigError: for another strength.
    """
    if not 0 < strength <= 1:
        raise ConfigError(f"--strength must lie in (0, 1], got {strength}")
    times = timesteps.from_time(
        model.timesteps, max(1, round(strength * model.schedule.num_steps))
    )

    def begin(keys, given):
        noise_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        start = images.to_float(given)
        return editing.perturb(model.schedule, noise_keys, start, times[0]), step_keys

    return Task(pictures, times, begin)


def inpaint(
    model: Model,
    pictures: np.ndarray,
    mask: np.ndarray,
    repeats: int = 10,
) -> Task:
    """Pictures with a part painted anew (RePaint); the rest is returned as it is.

    Args:
      model: the model.
      pictures: uint8 [num, height, width, channels].
      mask: where to paint, bool [height, width, 1].
      repeats: how often each stretch is gone down, 1 for plain replacement; a stretch
        is a fifth of the walk, at most the authors' 10 steps.

    Raises:
      ConfigError: for a mask of nothing or of everything, or too few repeats.
    """
    if not mask.any():
        raise ConfigError(
            "--mask is black everywhere, or transparent: make white what is to be "
            "painted"
        )
    if mask.all():
        raise ConfigError(
            "--mask is white everywhere, so that nothing of the picture would stay: "
            "make black what is to be kept"
        )
    if repeats < 1:
        raise ConfigError(f"--repaint must be at least 1, got {repeats}")

    def holding(sampler, given):
        known, painted = given
        known = images.to_float(known)
        sampler = editing.inpaint(sampler, model.schedule, known, painted)
        return editing.resample(sampler, model.schedule)

    length = max(1, min(10, (len(model.timesteps) - 1) // 5))
    times = timesteps.resampled(model.timesteps, length, repeats)
    given = pictures, np.broadcast_to(mask, (len(pictures), *mask.shape))
    return generate(model)._replace(given=given, timesteps=times, sampler=holding)


def restore(model: Model, pictures: np.ndarray, by: inverse.Measurement) -> Task:
    """Images that look like the pictures to a measurement, until they are clipped.

    Args:
      model: the model.
      pictures: what was measured, uint8 [num, ...].
      by: how.
    """

    def consistent(denoiser, given):
        return inverse.restore(denoiser, model.schedule, by, images.to_float(given))

    return generate(model)._replace(given=pictures, denoiser=consistent)


def noise_of(pictures: np.ndarray) -> float:
    """Estimates the standard deviation of their noise, the median of all.

    In values of 0 ... 255, and at least a hundredth of one.
    """
    levels = editing.noise_level(images.to_float(pictures))
    return float(np.clip(np.median(levels) * 127.5, 0.01, 255))


def denoise(model: Model, pictures: np.ndarray, std: float) -> Task:
    """Pictures without their noise.

    Args:
      model: the model.
      pictures: uint8 [num, height, width, channels].
      std: the standard deviation of their noise, in values of 0 ... 255.

    Raises:
      ConfigError: where that is not positive, or more than the model knows.
    """
    most = min(255.0, 127.5 * float(np.exp(-model.schedule.log_snr[-1] / 2)))
    if not 0 < std <= most:
        raise ConfigError(
            f"--denoise must be a standard deviation above 0, and at most {most:.0f} "
            f"with this model, got {std:g}"
        )
    first = round(float(editing.time_of_noise(model.schedule, std / 127.5)))
    times = timesteps.from_time(model.timesteps, first)
    alpha, _ = schedules.alpha_sigma(model.schedule, first)
    return Task(
        pictures, times, lambda keys, given: (alpha * images.to_float(given), keys)
    )


def interpolate(model: Model, num: int, length: int, noises: jax.Array) -> Task:
    """Rows of images, each from one noise to another along the sphere.

    Args:
      model: the model.
      num: how many images, at least a row; the last one may be cut short.
      length: images in a row, at least 2.
      noises: keys of the noises, two for each row.

    Raises:
      ConfigError: for another length.
    """
    if not 2 <= length <= num:
        raise ConfigError(f"--interpolate must be 2 ... --num ({num}), got {length}")
    rows, places = np.divmod(np.arange(num), length)
    weights = (places / (length - 1)).astype(np.float32)
    given = noises[2 * rows], noises[2 * rows + 1], weights

    def begin(keys, given):
        first, last, weight = given
        a, step_keys = loop.draw_prior(first, model.image_shape)
        b, _ = loop.draw_prior(last, model.image_shape)
        return editing.slerp(a, b, weight), step_keys

    return Task(given, model.timesteps, begin)


def make_draw(model: Model, task: Task, watched: bool = False) -> Callable:
    """Makes the function that draws.

    Args:
      model: the model.
      task: what to draw.
      watched: whether every step is returned too.

    Returns:
      (params, keys, labels, given) -> (uint8 images, None), or with the steps in the
      place of None: uint8 (x_t, predicted x_0), [batch, steps + 1, height, width,
      channels] and [batch, steps, height, width, channels].
    """

    def observe(state, prediction):
        return images.to_uint8(state.x), images.to_uint8(prediction.x_0)

    def draw(params, keys, labels, given):
        x, step_keys = task.begin(keys, given)
        denoiser = task.denoiser(model.denoiser(params, labels), given)
        drawn, steps = loop.sample(
            task.sampler(model.sampler, given),
            denoiser,
            step_keys,
            x,
            task.timesteps,
            observe if watched else loop.nothing,
        )
        drawn = images.to_uint8(drawn)
        if not watched:
            return drawn, None
        walk, predicted = (jnp.moveaxis(each, 0, 1) for each in steps)
        first = images.to_uint8(x)[:, None]
        return drawn, (jnp.concatenate([first, walk], 1), predicted)

    return draw


def read(paths: Sequence[str], image_shape: Sequence[int], fit=True) -> np.ndarray:
    """Reads pictures as uint8 [pictures, height, width, channels], on white.

    Args:
      paths: the files.
      image_shape: (height, width, channels).
      fit: whether to resize and crop what has another size, or refuse it.

    Raises:
      ConfigError: naming the file that is missing, no picture, or of another size.
    """
    (height, width, channels), pictures = image_shape, []
    if channels not in images.CHANNELS:
        raise ConfigError(f"a model of {channels} channels is not one of pictures")
    for path in paths:
        pixels = _pixels(path, channels, "white")
        if pixels.shape[:2] != (height, width) and not fit:
            size = "x".join(map(str, pixels.shape[:2]))
            raise ConfigError(f"{path} is {size}, but must be {height}x{width} here")
        pictures.append(images.resize_and_crop(pixels, (height, width)))
    return np.stack(pictures)


def read_mask(
    path: str, pictures: Sequence[str], image_shape: Sequence[int]
) -> np.ndarray:
    """Reads where to paint: bool [height, width, 1], True where the mask is white.

    What is transparent counts as black: there the picture stays.

    Args:
      path: the mask, in the shape of the pictures or of the model's images.
      pictures: the files that it is for, which are cut to that shape too.
      image_shape: (height, width, channels).

    Raises:
      ConfigError: naming what cannot be read, or has another shape.
    """
    size, pixels = tuple(image_shape[:2]), _pixels(path, 1, "black")
    height, width = pixels.shape[:2]
    for picture in pictures:
        h, w = _pixels(picture, 1, "white").shape[:2]
        apart = abs(height * w - width * h)  # of sides that were rounded, half of one
        if (height, width) != size and 2 * apart > max(height + width, h + w):
            raise ConfigError(
                f"--mask {path} is {height}x{width}, but {picture} is {h}x{w}: give a "
                f"mask of that shape, or of {size[0]}x{size[1]}"
            )
    return images.resize_and_crop(pixels, size) > 127


def _pixels(path, channels, background):
    try:
        return images.read(path, channels, background)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no picture {path}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the picture {path}: {error}") from error
