"""The Inception network against torch-fidelity (see tests/data/README.md), its file."""

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ddpm_jax.metrics.features import inception, inception_weights, resize

GOLDEN = np.load("tests/data/inception.npz")
LAYERS = Path("tests/data/inception_layers.txt").read_text().splitlines()
TAPS = {
    "64": "mean_64",
    "192": "mean_192",
    "768": "mean_768",
    "2048": "pool_3",
    "logits_unbiased": "logits_unbiased",
    "logits": "logits",
}
NORM = ("weight", "bias", "running_mean", "running_var")
SHAPES = [(32, 32), (7, 300), (299, 299), (400, 1)]


def named_shapes():
    for line in LAYERS:
        name, *shape = line.split()
        yield f"{name}.conv.weight", tuple(map(int, shape))
        yield from ((f"{name}.bn.{part}", (int(shape[0]),)) for part in NORM)
    yield "fc.weight", (1008, 2048)
    yield "fc.bias", (1008,)


def random_tensor(name, z):
    """A tensor of the rule of tests/data/README.md, from standard normal z."""
    last = ".".join(name.split(".")[-2:])
    rules = {
        "conv.weight": lambda: z * np.sqrt(2 / np.prod(z.shape[1:])),
        "bn.weight": lambda: 1 + 0.1 * z,
        "bn.bias": lambda: 0.1 * z,
        "bn.running_mean": lambda: 0.1 * z,
        "bn.running_var": lambda: 0.5 + np.abs(z),
        "fc.weight": lambda: 0.05 * z,
        "fc.bias": lambda: z,
    }
    return rules[last]().astype(np.float32)


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {
        name: random_tensor(name, rng.standard_normal(shape))
        for name, shape in named_shapes()
    }


@pytest.fixture(scope="module")
def network(tensors):
    params, apply = inception.make_inception(tensors)
    return params, jax.jit(apply)


def random_images(shape, batch=2):
    size = (batch, *shape, 3)
    return np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)


def test_names_and_shapes():
    assert inception.tensor_shapes() == dict(named_shapes())


def test_features(network):
    params, apply = network
    features = apply(params, resize.tf(GOLDEN["u8"]))
    for tap, field in TAPS.items():
        ours, theirs = np.asarray(getattr(features, field)), GOLDEN[tap]
        assert ours.shape == theirs.shape
        difference = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        assert difference < 1e-6, tap


def test_spatial_is_seven_channels_of_the_first_branch_of_6d(network):
    params, apply = network
    layer = params["Mixed_6d.branch1x1"]
    bias = np.arange(192, dtype=np.float32) - 2
    constant = {"kernel": np.zeros_like(layer["kernel"]), "bias": bias}
    changed = params | {"Mixed_6d.branch1x1": constant}
    spatial = apply(changed, resize.tf(GOLDEN["u8"])).spatial
    assert spatial.shape == (2, 17 * 17 * 7)
    expected = np.tile(np.maximum(bias[:7], 0), (2, 17 * 17))
    np.testing.assert_array_equal(spatial, expected)


def test_normalisation_is_folded(tensors, network):
    params, _ = network
    name = "Mixed_7c.branch3x3_2a"
    x = np.random.default_rng(1).standard_normal((5, 3 * 384))
    scale, bias, mean, variance = (tensors[f"{name}.bn.{part}"] for part in NORM)
    kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0).reshape(-1, 384)
    expected = (x @ kernel - mean) / np.sqrt(variance + 1e-3) * scale + bias
    folded = x @ params[name]["kernel"].reshape(-1, 384) + params[name]["bias"]
    np.testing.assert_allclose(folded, expected, rtol=1e-5, atol=1e-5)


def test_wrong_images_are_refused(network):
    params, apply = network
    with pytest.raises(ValueError, match="299, 299, 3"):
        apply(params, np.zeros((1, 32, 32, 3), np.float32))


def tf_pixel(image, row, column, size=299):
    """One output pixel as TensorFlow 1 has it, in single steps of float32."""

    def between(a, b, fraction):
        return a + (b - a) * fraction

    def position(index, length):
        at = np.float32(index) * (np.float32(length) / np.float32(size))
        return int(at), min(int(at) + 1, length - 1), at - np.float32(int(at))

    top, bottom, y = position(row, image.shape[0])
    left, right, x = position(column, image.shape[1])
    rows = [between(image[r, left], image[r, right], x) for r in (top, bottom)]
    return (between(*rows, y) - np.float32(128)) / np.float32(128)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tf_is_exact_to_the_bit(shape):
    images = random_images(shape)
    ours = np.asarray(resize.tf(images))
    assert ours.dtype == np.float32
    floats = images.astype(np.float32)
    places = np.random.default_rng(5).integers(0, 299, (300, 2)).tolist()
    for row, column in [*places, [298, 298], [0, 0]]:
        theirs = tf_pixel(floats[1], row, column)
        np.testing.assert_array_equal(ours[1, row, column], theirs)
    # A fused product and sum in a jitted function round once.
    np.testing.assert_allclose(jax.jit(resize.tf)(images), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pytorch_fid(shape):
    images = random_images(shape)
    resized = jax.image.resize(
        images.astype(np.float32), (2, 299, 299, 3), "bilinear", antialias=False
    )
    ours = resize.pytorch_fid(images)
    np.testing.assert_allclose(ours, 2 * resized / 255 - 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clean(shape):
    images = random_images(shape)
    ours = resize.clean(images)
    for i, image in enumerate(images):
        for j, channel in enumerate(Image.fromarray(image).split()):
            floats = channel.convert("F").resize((299, 299), Image.Resampling.BICUBIC)
            theirs = (np.clip(floats, 0, 255) - 128) / 128
            np.testing.assert_array_equal(ours[i, :, :, j], theirs)


@pytest.mark.parametrize("convention", resize.CONVENTIONS)
def test_what_every_convention_keeps(convention):
    """Black and white stay; anything but 8-bit colour is refused."""
    function = resize.CONVENTIONS[convention]
    for level in (0, 255):
        constant = function(np.full((1, 9, 8, 3), level, np.uint8))
        white = 1 if convention == "pytorch_fid" else 127 / 128
        assert constant.shape == (1, 299, 299, 3)
        np.testing.assert_allclose(constant, white if level else -1, atol=1e-6)
    for wrong in (np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 1), np.uint8)):
        with pytest.raises(ValueError, match="uint8 images"):
            function(wrong)


def publish(monkeypatch, path, tensors):
    """A stand-in for the published file, whose pickle only PyTorch could read."""
    path.write_bytes(b"pickle")
    monkeypatch.setattr(
        inception_weights, "SHA256", hashlib.sha256(b"pickle").hexdigest()
    )
    read = inception_weights.read_tensors
    content = tensors | {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.int64(1)}
    monkeypatch.setattr(
        inception_weights, "read_tensors", lambda p: content if p == path else read(p)
    )
    return path


def test_published_and_converted_weights(tensors, tmp_path, monkeypatch):
    published = publish(monkeypatch, tmp_path / "inception.pth", tensors)
    converted = tmp_path / "inception.safetensors"
    loaded = inception_weights.load_weights(published)
    inception_weights.convert_weights(published, converted)
    assert sorted(tmp_path.iterdir()) == [published, converted]
    published.unlink()
    for again in (
        loaded,
        inception_weights.load_weights(converted),
        inception_weights.load_weights(published),  # its conversion lies next to it
    ):
        assert again.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(again[name], tensor)

    monkeypatch.setattr(inception_weights, "SHA256", "0" * 64)
    with pytest.raises(OSError, match="not a conversion of the published weights"):
        inception_weights.load_weights(converted)
    with converted.open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(OSError, match="may be damaged"):
        inception_weights.load_weights(converted)


def test_any_other_file_is_refused_unread(tmp_path, monkeypatch):
    content = bytes(1000)
    monkeypatch.setattr(
        inception_weights, "SHA256", hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(
        inception_weights, "read_tensors", lambda path: pytest.fail("was read")
    )
    file = tmp_path / "inception.pth"
    for other in (content[:-1], b"\1" + content[1:]):  # cut off, changed
        file.write_bytes(other)
        with pytest.raises(OSError, match=f"{len(other)} bytes.*not 95628359") as error:
            inception_weights.load_weights(file)
        assert inception_weights.SHA256 in str(error.value)
        with pytest.raises(OSError, match="not the published file"):
            inception_weights.convert_weights(file, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [file]


def test_absent_file_and_wrong_name(tmp_path):
    with pytest.raises(OSError, match="give its path") as error:
        inception_weights.load_weights(tmp_path / "none.pth")
    assert all(url in str(error.value) for url in inception_weights.URLS)
    with pytest.raises(OSError, match="must end in .safetensors"):
        inception_weights.convert_weights(tmp_path / "none.pth", tmp_path / "out.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("fc.bias"), "missing: fc.bias"),
        (lambda t: t.update(extra=np.zeros(1)), "unknown: extra"),
        (
            lambda t: t.update({"fc.bias": np.zeros(1000)}),
            r"another shape: fc.bias \[1000\] instead of \[1008\]",
        ),
        (lambda t: t.clear(), "missing: .* and 469 more"),
    ],
)
def test_tensors_of_another_network(tensors, tmp_path, monkeypatch, change, message):
    changed = {**tensors}
    change(changed)
    with pytest.raises(OSError, match=message):
        inception.make_inception(changed)
    file = publish(monkeypatch, tmp_path / "inception.pth", changed)
    with pytest.raises(OSError, match=f"inception.pth: .*{message}"):
        inception_weights.load_weights(file)


def test_other_safetensors_are_refused(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(OSError, match="unknown: a"):
        inception_weights.load_weights(tmp_path / "other.safetensors")
