"""Feature networks by their names: Inception, the one trained in place, pixels."""

import jax
import numpy as np
import pytest
from features import normal

from ddpm_jax.data import arrays as sources
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import extractors as networks
from ddpm_jax.experiment import dataset
from ddpm_jax.metrics.features import base, classifier, inception, inception_weights


def features_of(extractor, images):
    return extractor.apply(extractor.params, extractor.prepare(images))


# The Inception network.


@pytest.fixture(scope="module")
def random_inception():
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in inception.tensor_shapes().items():
        z = random.standard_normal(shape, np.float32)
        width = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        tensors[name] = np.abs(1 + z * width) if "bn." in name else z * width
    params, apply = inception.make_inception(tensors)
    return tensors, (params, jax.jit(apply))


@pytest.fixture
def open_inception(random_inception, monkeypatch):
    """Compiled once, though each convention would be by itself."""
    tensors, network = random_inception
    monkeypatch.setattr(inception_weights, "load_weights", lambda path: tensors)
    monkeypatch.setattr(base, "make_inception", lambda tensors: network)
    return lambda *given: networks.open_extractor("inception", None, *given)


GREY = np.random.default_rng(0).integers(0, 256, (2, 20, 12, 1), np.uint8)


def test_conventions_of_inception_differ_and_say_so(open_inception):
    found = {}
    for convention in ("tf", "pytorch_fid", "clean"):
        extractor = open_inception(None, convention)
        assert extractor.protocol == {
            "name": "inception",
            "convention": convention,
            "weights": inception_weights.SHA256,
        }
        outputs = features_of(extractor, GREY)
        assert [each.shape for each in outputs] == [(2, 2048), (2, 1008), (2, 2023)]
        coloured = features_of(extractor, np.repeat(GREY, 3, axis=-1))
        for ours, theirs in zip(outputs, coloured, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
        found[convention] = np.asarray(outputs.features)
    names = [*found]
    for one, other in zip(names, names[1:] + names[:1], strict=True):
        apart = np.linalg.norm(found[one] - found[other])
        assert apart > 1e-4 * np.linalg.norm(found[one]), (one, other)


def test_inception_of_what_it_does_not_know(open_inception):
    with pytest.raises(
        ConfigError, match="unknown convention 'tff'; did you mean 'tf'"
    ):
        open_inception(None, "tff")
    for convention in ("tf", "clean"):
        with pytest.raises(ValueError, match=r"uint8 images .*, not uint8 \[2, 20, 12"):
            features_of(open_inception(None, convention), np.repeat(GREY, 4, axis=-1))


# The network that is trained in place.


PICTURES, CLASSES = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3


@pytest.fixture
def open_trained(tmp_path, monkeypatch):
    """Opens the classifier of the images of a file, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def open_it(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        data = {"name": "arrays", "path": str(tmp_path / "a.npz")}
        shape = arrays["images"].shape[1:]
        return networks.open_extractor("classifier", dataset.Dataset(data, shape))

    return open_it


def test_the_classifier_comes_out_of_the_cache_to_the_bit(open_trained, monkeypatch):
    digits = sources.digits("test")
    images, labels = digits.images[:40], digits.labels[:40]
    for steps in ("least_steps", "most_steps"):
        monkeypatch.setitem(classifier.RECIPE, steps, 2)
    first = open_trained(images=images, labels=labels)
    monkeypatch.setattr(classifier, "fit", None)
    again = open_trained(images=images, labels=labels)
    name = {"name": "classifier", "weights": base.fingerprint(first.params)}
    assert first.protocol == again.protocol == name
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    outputs = jax.eval_shape(again.apply, again.params, again.prepare(images))
    assert outputs.features.shape == (40, 64) and outputs.logits.shape == (40, 10)
    assert outputs.spatial is None


def test_the_classifier_is_trained_once_for_each_set_of_images(
    open_trained, monkeypatch, tmp_path
):
    fits = []

    def fit(images, labels, num_classes):
        fits.append(num_classes)
        return {"a": {"w": normal(len(fits), 4, 3).T}, "b": normal(0, 2)}

    monkeypatch.setattr(classifier, "fit", fit)
    changed = PICTURES.copy()
    changed[5, 7, 7] = 1
    given = [(PICTURES, CLASSES), (changed, CLASSES), (PICTURES, CLASSES[::-1])]
    for round_ in range(2):
        for number, (images, labels) in enumerate(given, 1):
            found = open_trained(images=images, labels=labels).params
            assert fits == [3] * (3 if round_ else number)
            np.testing.assert_array_equal(found["a"]["w"], normal(number, 4, 3).T)
            np.testing.assert_array_equal(found["b"], normal(0, 2))
            assert {*found} == {"a", "b"}
    monkeypatch.setitem(classifier.RECIPE, "version", -1)
    open_trained(images=PICTURES, labels=CLASSES)
    assert len(fits) == 4
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == 4 * [".safetensors"]


def test_no_network_is_trained_without_classes(open_trained, monkeypatch):
    monkeypatch.setattr(classifier, "fit", None)
    for labels in ({}, {"labels": np.zeros(6, int)}):
        with pytest.raises(
            ConfigError, match="no classes to train .*: give --features"
        ):
            open_trained(images=PICTURES, **labels)
    with pytest.raises(ConfigError, match="trained on a data set: give --config"):
        networks.open_extractor("classifier", None)


def test_what_fit_refuses_is_one_line(open_trained, monkeypatch):
    def refuse(*given):
        raise ValueError("the loss of the feature network did not stay finite\nsee x")

    monkeypatch.setattr(classifier, "fit", refuse)
    with pytest.raises(ConfigError, match=r"^config.data: the loss .* finite$"):
        open_trained(images=PICTURES, labels=CLASSES)


# The images themselves.


def test_pixels_are_the_images():
    images = np.array([0, 255, 51], np.uint8).reshape(1, 3, 1, 1)
    extractor = networks.open_extractor("pixels", None)
    assert extractor.protocol == {"name": "pixels"}
    outputs = features_of(extractor, images)
    np.testing.assert_allclose(outputs.features, [[-1, 1, -0.6]], rtol=1e-6)
    assert outputs.logits is None and outputs.spatial is None
