"""A feature network that needs no download: a classifier of the data set itself.

It is trained in place, within a minute or two on a CPU; on one machine, always to the
same parameters. Distances of its features are no FID, and compare only where these are
equal.

    params = fit(images, labels, num_classes)
    features, logits = apply(params, images)
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from ddpm_jax.data.images import to_float
from ddpm_jax.metrics.features.convnet import classifier
from ddpm_jax.training.keys import random_key
from ddpm_jax.training.optimizers import make_optimizer

DIM = 64
# All that the parameters depend on besides the arguments of `fit`. The version counts
# changes to this file and the network that these numbers do not tell.
RECIPE = {
    "version": 1,
    "dim": DIM,
    "epochs": 30,
    "least_steps": 300,
    "most_steps": 2500,
    "batch_size": 128,
    "learning_rate": 6e-3,
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "largest_shift": 0.125,
}


def fit(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int = 0,
    num_steps: int | None = None,
    batch_size: int = RECIPE["batch_size"],
) -> dict[str, Any]:
    """Trains the network on one device: Adam, on images shifted by up to 1/8.

    Args:
      images: uint8 [num, height, width, channels].
      labels: integers [num] in 0 ... num_classes - 1.
      num_classes: classes, at least 2.
      seed: of initial parameters, order and shifts.
      num_steps: updates; by default 30 epochs, but 300 to 2500 updates.
      batch_size: images in each.

    Returns:
      NumPy parameters for `apply`, the same for the same arguments and machine.

    Raises:
      ValueError: for images and labels of another kind, for num_steps or batch_size
        below 1, and if the loss does not stay finite.
    """
    images, labels = _checked(images, labels, num_classes)
    if num_steps is None:
        num_steps = _num_steps(len(images), batch_size)
    if num_steps < 1 or batch_size < 1:
        raise ValueError(
            f"num_steps and batch_size must be positive, got {num_steps}, {batch_size}"
        )
    tx, _ = make_optimizer(
        "adam",
        RECIPE["learning_rate"],
        warmup_steps=int(RECIPE["warmup"] * num_steps),
        decay="cosine",
        decay_steps=num_steps,
    )
    network = classifier(num_classes, DIM)

    def loss_fn(params, x, y):
        _, logits = network.apply(params, x)
        targets = jax.nn.one_hot(y, num_classes)
        targets = optax.smooth_labels(targets, RECIPE["label_smoothing"])
        return jnp.mean(optax.softmax_cross_entropy(logits, targets))

    @jax.jit
    def update(params, state, key, x, y):
        loss, grads = jax.value_and_grad(loss_fn)(params, to_float(_shifted(key, x)), y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    with jax.default_device(jax.local_devices()[0]):
        init_key, shift_key = jax.random.split(random_key(seed))
        params = network.init(init_key, images.shape[1:])
        state = tx.init(params)
        batches = itertools.islice(_batches(len(images), batch_size, seed), num_steps)
        # disable=None: no bar where standard error is not a terminal.
        bar = tqdm(
            batches, "training the feature network", num_steps, False, disable=None
        )
        for step, chosen in enumerate(bar):
            key = jax.random.fold_in(shift_key, step)
            params, state, loss = update(
                params, state, key, images[chosen], labels[chosen]
            )
    if not np.isfinite(loss):
        raise ValueError("the loss of the feature network did not stay finite")
    return jax.device_get(params)


def apply(params: dict[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes features and predictions, of each image by itself.

    Args:
      params: of `fit`.
      images: uint8 [batch, height, width, channels], of the size it was trained on.

    Returns:
      features float32 [batch, 64] and logits float32 [batch, num_classes].

    Raises:
      ValueError: if the images are not uint8, or have other channels.
    """
    channels = params["conv_0"]["kernel"].shape[2]
    if images.shape[-1] != channels:
        raise ValueError(
            f"the feature network was trained on images of {channels} channels, these "
            f"have {images.shape[-1]}"
        )
    return classifier(len(params["head"]["bias"]), DIM).apply(params, to_float(images))


def _checked(images, labels, num_classes):
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            "images must be uint8 [num, height, width, channels], got "
            f"{images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be one integer for each of {len(images)} images, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {num_classes}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be 0 ... {num_classes - 1}, got {labels.min()} ... "
            f"{labels.max()}"
        )
    return images, labels.astype(np.int32)


def _num_steps(num, batch_size):
    steps = RECIPE["epochs"] * num // max(batch_size, 1)
    return min(max(steps, RECIPE["least_steps"]), RECIPE["most_steps"])


def _batches(num, batch_size, seed) -> Iterator[np.ndarray]:
    """Yields positions [batch_size], each once per epoch, without end."""
    order = np.empty(0, int)
    for epoch in itertools.count():
        random = np.random.Generator(np.random.Philox([seed, epoch]))
        order = np.concatenate([order, random.permutation(num)])
        while len(order) >= batch_size:
            yield order[:batch_size]
            order = order[batch_size:]


def _shifted(key, images):
    """Images moved by random whole pixels, with their edges repeated."""
    most = [int(RECIPE["largest_shift"] * side) for side in images.shape[1:3]]
    padding = [(0, 0), *((pixels, pixels) for pixels in most), (0, 0)]
    padded = jnp.pad(images, padding, mode="edge")
    limits = 2 * jnp.array(most) + 1
    corners = jax.random.randint(key, (len(images), 2), 0, limits.reshape(1, 2))

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)
