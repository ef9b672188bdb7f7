"""What turns images into features: a network with its preprocessing and its name."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data.images import to_float
from ddpm_jax.errors import unknown
from ddpm_jax.metrics.features import classifier as classifiers
from ddpm_jax.metrics.features import inception_weights, resize
from ddpm_jax.metrics.features.inception import make_inception


class Outputs(NamedTuple):
    """What scores read of a network, for each image.

    Attributes:
      features: [batch, dim].
      logits: [batch, classes], where the network classifies.
      spatial: [batch, positions], features that keep where they are, for sFID.
    """

    features: jax.Array
    logits: jax.Array | None = None
    spatial: jax.Array | None = None


class Extractor(NamedTuple):
    """A feature network.

    Attributes:
      protocol: its "name" and all that its features depend on, as JSON has it; only
        features of equal protocols compare.
      params: what `apply` takes first.
      apply: (params, prepared images [batch, ...]) -> Outputs, traced, treating each
        image by itself.
      prepare: uint8 images [batch, height, width, channels] of the host -> what `apply`
        takes, on the host.
    """

    protocol: dict[str, Any]
    params: Any
    apply: Callable[..., Outputs]
    prepare: Callable = lambda images: images


def inception(path: str | None = None, convention: str = "tf") -> Extractor:
    """The Inception network, of FID and IS.

    Args:
      path: of its weights, by default in the cache, or downloaded.
      convention: one of `resize.CONVENTIONS`.

    Raises:
      ValueError: for an unknown convention.
      OSError: see `inception_weights.load_weights`.
    """
    if convention not in resize.CONVENTIONS:
        raise ValueError(unknown("convention", convention, resize.CONVENTIONS))
    params, network = make_inception(inception_weights.load_weights(path))
    fit = resize.CONVENTIONS[convention]
    on_host = convention == "clean"

    def apply(params, images):
        features = network(params, images if on_host else fit(images))
        return Outputs(features.pool_3, features.logits_unbiased, features.spatial)

    return Extractor(
        {
            "name": "inception",
            "convention": convention,
            "weights": inception_weights.SHA256,
        },
        params,
        apply,
        lambda images: fit(_rgb(images)) if on_host else _rgb(images),
    )


def classifier(params) -> Extractor:
    """A network of `classifier.fit`, whose protocol says by which parameters."""

    def apply(params, images):
        return Outputs(*classifiers.apply(params, images))

    protocol = {"name": "classifier", "weights": fingerprint(params)}
    return Extractor(protocol, params, apply)


def pixels() -> Extractor:
    """The pixels themselves, in [-1, 1]: what is near in them looks the same."""

    def apply(params, images):
        return Outputs(to_float(images).reshape(len(images), -1))

    return Extractor({"name": "pixels"}, (), apply)


def fingerprint(params) -> str:
    """Returns the SHA-256 of parameters, a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(params)):
        leaf, name = np.asarray(leaf), jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _rgb(images):
    """Grey images with the same values in three channels."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
