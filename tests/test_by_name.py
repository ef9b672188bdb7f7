"""Metrics with their warnings, feature networks and what they are called, images."""

import errno
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import arrays as sources
from ddpm_jax.data.base import labels_of
from ddpm_jax.data.folders import image_shape_of
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import extractors as networks
from ddpm_jax.evaluation import measures
from ddpm_jax.experiment import dataset
from ddpm_jax.metrics import by_name, frechet, kernel, statistics
from ddpm_jax.metrics.by_name import METRICS
from ddpm_jax.metrics.features import base, classifier, inception, inception_weights
from ddpm_jax.metrics.features.base import Outputs
from ddpm_jax.metrics.frechet import Gaussian
from ddpm_jax.metrics.statistics import Statistics

DIM = 3
PROTOCOL = {"features": {"name": "pixels"}, "image_shape": [8, 8, 1], "num": 5}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def collected(seed, num=40, num_kept=None, protocol=PROTOCOL):
    outputs = Outputs(
        normal(seed, num, DIM), normal(seed + 1, num, 10), normal(seed + 2, num, 2)
    )
    return statistics.collect([outputs], num, protocol, num_kept)


def known(num, dim=DIM):
    """Statistics of which only the number of images matters."""
    gaussian = Gaussian(np.zeros(dim), np.eye(dim))
    return Statistics(PROTOCOL, num, gaussian, gaussian)


OURS, THEIRS = collected(0), collected(10)
LABELS = np.arange(40) % 10


# Metrics.


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_its_numbers(name):
    metric = METRICS[name]
    reference = THEIRS if metric.reads else None
    values = metric.score(OURS, reference, LABELS)
    assert len(values) == len(metric.names)
    for value in values:
        assert isinstance(value.value, float) and np.isfinite(value.value)
        assert value.error is None or value.error >= 0
        assert all(isinstance(warning, str) for warning in value.warnings)
    assert metric.network in (None, *networks.NAMES)


def test_every_number_has_a_name_of_its_own():
    names = [name for metric in METRICS.values() for name in metric.names]
    assert len(names) == len({*names})


def value(name, *given):
    first, *_ = METRICS[name].score(*given)
    return first


@pytest.mark.parametrize("name", ["fd", "fid", "sfid"])
def test_the_distance_of_equal_statistics_is_zero(name):
    assert 0 <= value(name, OURS, OURS, None).value < 1e-9
    assert value(name, OURS, THEIRS, None).value > 1e-3
    forth, back = (value(name, *p, None) for p in ((OURS, THEIRS), (THEIRS, OURS)))
    np.testing.assert_allclose(forth.value, back.value, rtol=1e-6)


@pytest.mark.parametrize("name, part", [
    ("fd", "gaussian"), ("fid", "gaussian"), ("sfid", "spatial")
])  # fmt: skip
def test_which_features_a_distance_is_of(name, part):
    expected = frechet.frechet_distance(getattr(OURS, part), getattr(THEIRS, part))
    assert value(name, OURS, THEIRS, None).value == expected


def test_scores_are_those_of_the_features_that_are_there():
    mean, error = kernel.inception_score(OURS.logits)
    assert value("is", OURS, None, None)[:2] == (mean, error)
    mean, error = kernel.kernel_distance(OURS.features, THEIRS.features, subset_size=40)
    assert value("kid", OURS, THEIRS, None)[:2] == (mean, error)
    for name in ("pr", "dc"):
        same = METRICS[name].score(OURS, OURS, None)
        assert [each.value for each in same] == [1, 1]


def test_accuracy():
    """It counts the images whose class is the one asked for, as a fair coin has it."""
    logits = np.full((8, 10), -1.0)
    logits[np.arange(8), [0, 1, 2, 3, 4, 5, 0, 0]] = 2
    found = value("accuracy", OURS._replace(logits=logits), None, np.arange(8))
    assert found.value == 6 / 8 and found.warnings == ()
    np.testing.assert_allclose(found.error, np.sqrt(8 / 12 * 4 / 12 / 12))
    all_right = value("accuracy", OURS._replace(logits=logits[:6]), None, np.arange(6))
    assert all_right.value == 1 and 0.1 < all_right.error < 0.2


@pytest.mark.parametrize("name, ours, theirs, message", [
    ("fd", OURS, known(40, DIM + 1), "of one width, got 3 and 4"),
    ("fid", OURS, known(40, DIM + 1), "of one width, got 3 and 4"),
    ("pr", collected(0, 3), THEIRS, "at least 4"),
])  # fmt: skip
def test_what_cannot_be_computed(name, ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        METRICS[name].score(ours, theirs, None)


def checked(name, theirs, labels=None, protocol=PROTOCOL):
    """What is known before any image is drawn."""
    return by_name.check(METRICS[name], protocol, labels, theirs)


@pytest.mark.parametrize("name, theirs, message", [
    ("accuracy", None, "no classes asked for"),
    ("sfid", THEIRS._replace(spatial=None), "holds no spatial part: make one"),
    ("kid", THEIRS._replace(features=None), "holds no features part: make one"),
    ("pr", collected(10, num_kept=0), "holds no features part"),
    ("dc", THEIRS._replace(features=None), "holds no features part"),
])  # fmt: skip
def test_what_is_refused_before_any_image_is_drawn(name, theirs, message):
    with pytest.raises(ValueError, match=message):
        checked(name, theirs)


def test_what_is_accepted_before_any_image_is_drawn():
    for name, metric in METRICS.items():
        reference = THEIRS if metric.reads else None
        assert checked(name, reference, LABELS) == ()


# References.


def of_protocol(**changes):
    return OURS._replace(protocol={**PROTOCOL, **changes})


@pytest.mark.parametrize("changes, message", [
    ({"features": {"name": "ours", "code": 64 * "a"}},
     r"features name ours, code a{12}, these images have name pixels: make another"),
    ({"features": {"name": "pixels", "more": 1}}, "name pixels, more 1, these"),
    ({"image_shape": [8, 8, 3]},
     "image_shape 8x8x3, these images have 8x8x1: make another with python -m ddpm"),
    ({"image_shape": [8, 9, 1]}, "8x9x1"),
])  # fmt: skip
def test_references_of_another_protocol_are_refused(changes, message):
    for pair in ((OURS, of_protocol(**changes)), (of_protocol(**changes), OURS)):
        with pytest.raises(ValueError, match="^the reference has .*make another"):
            checked("fd", pair[1], None, pair[0].protocol)
    with pytest.raises(ValueError, match=message):
        checked("fd", of_protocol(**changes))


def test_other_images_are_what_references_are_for():
    assert checked("fd", of_protocol(num=7, images={"a": 1})) == ()


def test_a_reference_that_does_not_say_what_it_is_of_warns():
    (warning,) = checked("fd", OURS._replace(protocol={}))
    assert "does not say which images, size and preprocessing" in warning


def test_a_measure_is_its_metric():
    class subject:
        labels = LABELS

    silent = THEIRS._replace(protocol={}, num=None)
    for name, metric in METRICS.items():
        measure = measures.measure_of(name, silent)
        assert measure.names == metric.names
        assert len(measure.check(subject, PROTOCOL)) == bool(metric.reads)
        own = metric.score(OURS, silent, LABELS)
        assert measure.compute(subject, OURS) == own
        assert measure.protocol == ({"reference": {}} if metric.reads else {})


@pytest.mark.parametrize("names, given, network", [
    (["fid"], None, "inception"),
    (["is", "kid", "sfid", "fid"], None, "inception"),
    (["accuracy"], None, "classifier"),
    (["kid", "accuracy", "fd"], None, "classifier"),
    (["fd"], None, "classifier"),
    (["kid", "pr", "dc"], None, "classifier"),
    ([], None, "classifier"),
    (["kid"], "inception", "inception"),
    (["fid"], "inception", "inception"),
    (["fd", "kid"], "pixels", "pixels"),
    (["fd"], "ours.py", "ours.py"),
])  # fmt: skip
def test_the_network_of_metrics(names, given, network):
    assert measures.network_of(names, given) == network


@pytest.mark.parametrize("names, given, message", [
    (["fid", "accuracy"], None, "accuracy is of .* 'classifier', not of 'inception'"),
    (["accuracy", "is"], None, "is is of .* 'inception', not of 'classifier'"),
    (["fid"], "pixels", "fid is of .*, not of 'pixels': give --features inc"),
    (["accuracy"], "inception", "accuracy is of the features 'classifier'"),
    (["sfid"], "ours.py", "not of 'ours.py'"),
    (["fd"], "inception", "is called fid"),
    (["fid", "fd"], None, "is called fid"),
])  # fmt: skip
def test_metrics_of_another_network_are_refused(names, given, message):
    with pytest.raises(ConfigError, match=message):
        measures.network_of(names, given)


# Names of parameters.

TREE = {"a": {"w": normal(0, 3, 4)}, "b": np.arange(4), "c": np.float32(2)}


@pytest.mark.parametrize("other", [
    dict(reversed(TREE.items())),
    TREE | {"a": {"w": np.asfortranarray(TREE["a"]["w"])}},
    TREE | {"b": np.repeat(TREE["b"], 2)[::2]},
    TREE | {"a": {"w": jnp.asarray(TREE["a"]["w"])}, "c": jnp.float32(2)},
])  # fmt: skip
def test_equal_parameters_have_one_fingerprint(other):
    assert base.fingerprint(other) == base.fingerprint(TREE)


def test_other_parameters_have_another_fingerprint():
    w, b = TREE["a"]["w"], TREE["b"]
    others = [
        TREE,
        TREE | {"a": {"w": np.nextafter(w, np.inf)}},
        TREE | {"a": {"w": w.T}},
        TREE | {"a": {"w": w.reshape(4, 3)}},
        TREE | {"a": {"w": w.view(np.int32)}},
        TREE | {"a": {"v": w}},
        TREE | {"a": w},
        TREE | {"b": b.astype(np.uint64)},
        TREE | {"b": b[::-1]},
        TREE | {"b": b[:0]},
        TREE | {"b": (b[:2], b[2:])},
        TREE | {"c": np.full(1, 2, np.float32)},
        TREE | {"d": b},
        {"a": TREE["a"]},
        (),
    ]
    assert len({base.fingerprint(each) for each in others}) == len(others)


@pytest.mark.parametrize("leaf", [2.0, jnp.ones(3, jnp.bfloat16)], ids=str)
def test_fingerprints_of_other_leaves(leaf):
    base.fingerprint({"a": leaf})


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


def features_of(extractor, images):
    return extractor.apply(extractor.params, extractor.prepare(images))


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


def test_pixels_are_the_images():
    images = np.array([0, 255, 51], np.uint8).reshape(1, 3, 1, 1)
    extractor = networks.open_extractor("pixels", None)
    assert extractor.protocol == {"name": "pixels"}
    outputs = features_of(extractor, images)
    np.testing.assert_allclose(outputs.features, [[-1, 1, -0.6]], rtol=1e-6)
    assert outputs.logits is None and outputs.spatial is None


# Images as they are.


def write(path, *shape, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.mark.parametrize("shape, expected", [
    ((6, 9), (6, 9, 1)), ((6, 9, 3), (6, 9, 3)), ((7, 5, 4), (7, 5, 3))
])  # fmt: skip
def test_a_folder_of_images_as_they_are(tmp_path, shape, expected):
    pixels = write(tmp_path / "a.png", *shape)
    write(tmp_path / "b.png", *shape)
    (tmp_path / "notes.txt").write_text("no image")
    source = dataset.open_images(str(tmp_path))
    assert source.image_shape == expected and len(source) == 2
    image, label = source[0]
    pixels = pixels.reshape(*shape[:2], -1)
    if shape[-1] == 4:  # on white, to rounding
        opacity = pixels[..., 3:] / 255
        pixels = pixels[..., :3] * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(image, pixels, atol=0.51)
    assert source.num_classes == label == 0


def test_black_and_white_and_palettes(tmp_path):
    write(tmp_path / "1" / "a.png", 4, 4, mode="1")
    write(tmp_path / "P" / "a.png", 4, 4, 3, mode="P")
    shapes = [dataset.open_images(str(tmp_path / x)).image_shape for x in "1P"]
    assert shapes == [(4, 4, 1), (4, 4, 3)]


def test_images_that_are_to_be_turned_keep_all_their_pixels(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    source = dataset.open_images(str(tmp_path))
    assert source.image_shape == (6, 4, 1)
    np.testing.assert_array_equal(source[0][0][..., 0], np.rot90(pixels, -1))


def mixed_sizes(folder):
    write(folder / "x" / "a.png", 6, 9, 3)
    write(folder / "x" / "b.png", 6, 8, 3)


def corrupt(folder):
    write(folder / "a.png", 6, 9)
    (folder / "b.png").write_bytes(b"not an image")


def cut_off(folder):
    write(folder / "a.png", 60, 90)
    content = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])


def nothing(folder):
    (folder / ".hidden.png").write_bytes(b"")


def test_a_machine_that_fails_is_not_blamed_on_a_picture(tmp_path, monkeypatch):
    write(tmp_path / "a.png", 6, 9)
    failing = OSError(errno.EIO, "Input/output error")
    with monkeypatch.context() as broken:
        broken.setattr(Image, "open", Mock(side_effect=failing))
        with pytest.raises(OSError, match="Input/output error: .*a.png"):
            image_shape_of(tmp_path)
        broken.setattr(Image, "open", Mock(side_effect=MemoryError()))
        with pytest.raises(MemoryError):
            image_shape_of(tmp_path)


@pytest.mark.parametrize("fill, message", [
    (mixed_sizes, "of 2 sizes .1 of 6x9, 1 of 6x8.: bring all to one size"),
    (corrupt, "cannot read .*/b.png"),
    (cut_off, "cannot read .*/b.png"),
    (nothing, "there is no image in "),
])  # fmt: skip
def test_folders_that_cannot_be_scored(tmp_path, fill, message):
    fill(tmp_path)
    with pytest.raises(ConfigError, match=f"^--images: .*{message}"):
        dataset.open_images(str(tmp_path))


@pytest.mark.parametrize("arrays, message", [
    (None, "there is no file .*a.npz"),
    (b"PK", "a.npz is no readable .npz"),
    ({"mu": np.zeros(2)}, r"holds \['mu'\] but not `images`"),
    ({"images": np.zeros((2, 4, 4, 3))}, "is float64 .*: store uint8"),
])  # fmt: skip
def test_files_that_cannot_be_scored(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=f"^--images: .*{message}"):
        dataset.open_images(str(path))


def test_a_file_of_images_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 9), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.array([0, 2, 1, 0, 2]))
    source = dataset.open_images(str(tmp_path / "a.npz"))
    assert source.image_shape == (6, 9, 1) and source.num_classes == 3
    np.testing.assert_array_equal(source[3][0][..., 0], images[3])


# Labels.


class Plain:
    """A source of nothing but items."""

    num_classes = 5

    def __getitem__(self, index):
        return np.zeros((2, 2, 1), np.uint8), index % 5


class Labelled(Plain):
    labels = [0, 3, 1, 2, 4]

    def __getitem__(self, index):
        raise AssertionError("no image is read")


def test_labels_of_any_source(tmp_path):
    for source, indices, expected in (
        (Plain(), np.array([7, 3, 3]), [2, 3, 3]),
        (Labelled(), np.array([4, 1, 1]), [4, 3, 3]),
        (Plain(), np.arange(0), []),
        (Labelled(), np.arange(0), []),
    ):
        found = labels_of(source, indices)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
    for name in ("cat/a.png", "dog/a.png", "dog/b.png"):
        write(tmp_path / name, 2, 2)
    folder = dataset.open_images(str(tmp_path))
    np.testing.assert_array_equal(labels_of(folder, np.array([2, 0])), [1, 0])
