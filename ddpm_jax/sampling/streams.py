"""Drawing to watch: pictures of all images while they are drawn.

A walk is cut into chunks of steps, each a call of one compiled program, with where the
sampler is carried between them. A chunk's times are an argument, so the same program
serves other numbers of steps, and other strengths, classes, seeds, pictures and masks.
"""

import collections
import math
import threading
from collections.abc import Callable, Generator, Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import images
from ddpm_jax.diffusion.samplers import SAMPLERS, Sampler, loop
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.load import Trained
from ddpm_jax.experiment.model import Model
from ddpm_jax.experiment.options import SampleOptions
from ddpm_jax.sampling import tasks
from ddpm_jax.sampling.draw import sample_keys, sample_labels
from ddpm_jax.sampling.tasks import Task
from ddpm_jax.sampling.wishes import Offer, Wish

MOST_PROGRAMS = 16  # that are kept
MOST_STEPS = 1000
MOST_IMAGES = 64
MOST_VALUES = 2**22  # of all images at once
FRAMES = 100  # about as many are shown of a long walk


class Frame(NamedTuple):
    """All images at a time.

    Attributes:
      step: how many steps are done.
      steps: of how many.
      png: the images side by side, nearly a square of them, without lines between.
    """

    step: int
    steps: int
    png: bytes


class Recent:
    """Keeps what was used last, by what it was made of."""

    def __init__(self, most: int):
        """Begins with nothing.

        Args:
          most: how many things are kept.
        """
        self._most = most
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what is kept under a key, or makes it; one is made at a time."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return self._kept[key]

    def __len__(self):
        return len(self._kept)


class Streams:
    """Draws what is wished from one model.

    Attributes:
      offer: what may be wished.
    """

    def __init__(self, trained: Trained):
        """Reads the parameters.

        Args:
          trained: the model.

        Raises:
          ConfigError: for images that cannot be shown.
          OSError: if the parameters cannot be read.
        """
        self._trained, self._own = trained, trained.model()
        if self._own.image_shape[2] not in images.CHANNELS:
            raise ConfigError(
                f"images of {self._own.image_shape[2]} channels cannot be shown"
            )
        self._params = jax.device_put(trained.load_params(self._own))
        self._models, self._programs = Recent(MOST_PROGRAMS), Recent(2 * MOST_PROGRAMS)
        self.offer = _offer(trained, self._own)

    def frames(self, wish: Wish) -> Generator[Frame, None, None]:
        """Returns the frames of a wish, drawn as they are asked for.

        Raises:
          ConfigError: at once, for what does not go with this model.
        """
        model, labels = self._model(wish), self._labels(wish)
        task = _task(model, wish)
        begin, go_on = self._begin(wish, model, task), self._go_on(wish, model, task)

        def draw():
            keys = sample_keys(wish.seed, wish.num)
            state, step_keys = begin(keys, task.given)
            shown = images.to_uint8(state.x)
            steps = len(task.timesteps) - 1
            yield _frame(0, steps, shown)
            given = self._params, labels, task.given, step_keys
            for last, visits in _chunks(task.timesteps):
                state, shown = go_on(*given, state, visits)
                yield _frame(last, steps, shown)

        return draw()

    def _model(self, wish: Wish) -> Model:
        key = wish.sampler, wish.steps, self._scale(wish)
        steps = None if wish.steps == self.offer.steps else wish.steps
        options = SampleOptions(
            sampler=wish.sampler, num_steps=steps, guidance_scale=key[-1]
        )
        return self._models.get(key, lambda: self._trained.model(options, self._own))

    def _scale(self, wish: Wish) -> float | None:
        """That of guidance; of a picture whose class is not said, nothing is told."""
        if not self.offer.guided:
            return None
        untold = wish.picture is not None and wish.label is None
        return 0.0 if untold else wish.guidance_scale

    def _labels(self, wish: Wish) -> np.ndarray | None:
        given = None if wish.label is None else [wish.label]
        return sample_labels(len(self.offer.classes), wish.num, given)

    def _begin(self, wish: Wish, model: Model, task: Task) -> Callable:
        """The program of where a walk begins; img2img's is of its first time."""

        def begin(keys, given):
            x, step_keys = task.begin(keys, given)
            return task.sampler(model.sampler, given).init(x), step_keys

        key = "begin", _kind(wish), wish.sampler, wish.num, float(task.timesteps[0])
        task = task._replace(given=None)  # what it was first made for is not kept
        return self._programs.get(key, lambda: jax.jit(begin))

    def _go_on(self, wish: Wish, model: Model, task: Task) -> Callable:
        """The program of a chunk of steps: what a task adds to them knows no times."""

        def go_on(params, labels, given, keys, state, visits):
            denoiser = task.denoiser(model.denoiser(params, labels), given)
            sampler = _waiting(task.sampler(model.sampler, given))
            state, _ = loop.walk(sampler, denoiser, keys, state, visits)
            return state, images.to_uint8(state.x)

        length = _length(len(task.timesteps) - 1)
        key = _kind(wish), wish.sampler, self._scale(wish), wish.num, length
        task = task._replace(given=None)
        return self._programs.get(key, lambda: jax.jit(go_on))


def _offer(trained: Trained, model: Model) -> Offer:
    own, num_times = model.protocol(), len(model.timesteps) - 1
    most_images = MOST_VALUES // math.prod(model.image_shape)
    place = trained.origin.get("workdir") or trained.origin["pretrained"]
    names = trained.origin.get("classes", ())
    if len(names) != model.num_classes:
        names = [str(number) for number in range(model.num_classes)]

    def fits(name):
        try:
            trained.model(SampleOptions(sampler=name), model)
        except ConfigError:
            return False
        return True

    others = [name for name in SAMPLERS if name != own["sampler"]["name"]]
    return Offer(
        name=Path(place).absolute().name,
        image_shape=model.image_shape,
        classes=names,
        guided=model.null is not None,
        samplers=[own["sampler"]["name"], *filter(fits, others)],
        steps=num_times,
        most_steps=max(num_times, min(model.schedule.num_steps, MOST_STEPS)),
        most_images=min(MOST_IMAGES, max(1, most_images)),
        guidance_scale=own["denoiser"]["guidance_scale"],
    )


def _kind(wish: Wish) -> str:
    if wish.picture is None:
        return "generate"
    return "img2img" if wish.mask is None else "inpaint"


def _task(model: Model, wish: Wish) -> Task:
    if wish.picture is None:
        return tasks.generate(model)
    pictures = np.stack([wish.picture] * wish.num)
    if wish.mask is None:
        return tasks.img2img(model, pictures, wish.strength)
    return tasks.inpaint(model, pictures, wish.mask)


def _length(steps: int) -> int:
    """Steps in a chunk; at least 2, since XLA rounds otherwise without a loop."""
    return 2 ** max(1, math.ceil(math.log2(steps / FRAMES)))


def _chunks(times) -> Iterator[tuple[int, tuple]]:
    """The visits of each chunk, with how many steps are done then.

    All are of one length: the last one stays at its end.
    """
    steps = len(times) - 1
    length = _length(steps)
    padded = np.pad(times, (0, -steps % length), "edge")
    visits = loop.visits_of(padded)
    for first in range(0, steps, length):
        yield (
            min(first + length, steps),
            tuple(each[first : first + length] for each in visits),
        )


def _waiting(inner: Sampler) -> Sampler:
    """Lets a sampler stay where it is, in a step from a time to itself."""

    def step(denoiser, keys, state, t, s):
        moved, prediction = inner.step(denoiser, keys, state, t, s)
        stay = jax.tree.map(lambda new, old: jnp.where(t == s, old, new), moved, state)
        return stay, prediction

    return inner._replace(step=step)


def _frame(step: int, steps: int, pictures: jax.Array) -> Frame:
    shown = images.grid(np.asarray(pictures), scale=1, pad=0)
    return Frame(step, steps, images.to_png(shown))
