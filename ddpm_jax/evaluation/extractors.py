"""Which feature network: Inception, one trained in place, or the user's own."""

import hashlib
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ddpm_jax import places
from ddpm_jax.data.base import gather, in_memory
from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError, unknown
from ddpm_jax.experiment import code
from ddpm_jax.experiment.dataset import Dataset
from ddpm_jax.experiment.sections import attempt
from ddpm_jax.files import atomic_write
from ddpm_jax.metrics.features import base, classifier
from ddpm_jax.metrics.features.base import Extractor, Outputs
from ddpm_jax.sampling.partial import key_of

MOST_IMAGES = 50_000  # that the classifier is trained on, evenly spread
NAMES = ("inception", "classifier", "pixels", "FILE.py:FUNCTION")


def open_extractor(
    name: str,
    dataset: Dataset | None,
    weights: str | None = None,
    convention: str = "tf",
) -> Extractor:
    """Opens a feature network.

    Args:
      name: "inception"; "classifier", trained on these images the first time;
        "pixels"; or "file.py:function" or "package.module:function", of a function
        image_shape -> (params, apply), with apply(params, uint8 images [batch, height,
        width, channels]) -> features [batch, dim]. A file alone means its function
        make_features.
      dataset: the images that it is for.
      weights: the file of the Inception network's.
      convention: how images come to its size (see `metrics.features.resize`).

    Raises:
      ConfigError: if there is no such network, or it cannot be trained.
      OSError: if the weights cannot be read.
    """
    if name == "inception":
        try:
            return base.inception(weights, convention)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if name == "pixels":
        return base.pixels()
    if name == "classifier":
        return base.classifier(multihost.broadcast(_trained(dataset)))
    name = f"{name}:make_features" if name.endswith(".py") else name
    if ":" not in name:
        raise ConfigError(f"--features {name}: {unknown('network', name, NAMES)}")
    return _of_others(name, dataset)


def _trained(dataset):
    """The parameters of a classifier of these images, made or of the cache."""
    if dataset is None:
        raise ConfigError("the classifier is trained on a data set: give --config")
    source = in_memory(dataset.open("train"))
    if source.num_classes < 2:
        raise ConfigError(
            "these images have no classes to train a feature network on: give "
            "--features inception"
        )
    num = min(len(source), MOST_IMAGES)
    pictures, labels = gather(source, np.arange(num) * len(source) // num)
    made_of = base.fingerprint((pictures, labels, source.num_classes))
    key = key_of({"recipe": classifier.RECIPE, "images": made_of})
    path = places.cache_dir() / "classifiers" / f"{key}.safetensors"
    try:
        return _nested(load_file(path))
    except (FileNotFoundError, SafetensorError):  # not made yet, or cut off
        params = attempt("data", classifier.fit, pictures, labels, source.num_classes)
        with atomic_write(path) as partial:
            save_file(_flat(params), partial)
        return params


def _of_others(name, dataset):
    if dataset is None:
        raise ConfigError(f"--features {name} needs the size of images: give --config")
    params, function = code.named(name)(dataset.image_shape)
    place, _, function_name = name.rpartition(":")
    short = Path(place).stem
    if function_name != "make_features":
        short += f":{function_name}"
    protocol = {"name": short}
    if place.endswith(".py"):
        protocol["code"] = hashlib.sha256(Path(place).read_bytes()).hexdigest()
    protocol["weights"] = base.fingerprint(params)

    def apply(params, images):
        return Outputs(function(params, images))

    return Extractor(protocol, params, apply)


def _flat(tree):
    """Arrays of a tree of dictionaries by their path, as safetensors has them."""
    return {
        "/".join(key.key for key in path): np.ascontiguousarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _nested(arrays):
    """The inverse of `_flat`."""
    tree = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = array
    return tree
