"""The Inception network of the Frechet distance (Heusel et al. 2017).

It is "inception-2015-12-05" of TensorFlow, with 1008 classes, in the weights that the
PyTorch implementations of the distance share. It differs from Inception v3 elsewhere:
means over 3 x 3 pixels leave out the padding, and the last block takes maxima instead.

    params, apply = make_inception(weights.load_weights(path))
    features = apply(params, resize.tf(images))
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_CLASSES = 1008
NORM = ("weight", "bias", "running_mean", "running_var")
NORM_EPS = 1e-3
# float32 on every device: the default of accelerators has fewer bits.
PRECISION = jax.lax.Precision.HIGHEST


class Features(NamedTuple):
    """What metrics read of the network, float32.

    Attributes:
      pool_3: [batch, 2048], of FID, KID, precision and recall.
      logits_unbiased: [batch, 1008], without the bias, of the Inception score.
      logits: [batch, 1008], with it.
      spatial: [batch, 2023], 7 channels of 17 x 17 pixels, of sFID (Nash et al. 2021).
      mean_64: [batch, 64], means after the first maxima.
      mean_192: [batch, 192], means after the second.
      mean_768: [batch, 768], means before the last three blocks.
    """

    pool_3: jax.Array
    logits_unbiased: jax.Array
    logits: jax.Array
    spatial: jax.Array
    mean_64: jax.Array
    mean_192: jax.Array
    mean_768: jax.Array


class Conv(NamedTuple):
    """A convolution, normalised, and ReLU."""

    name: str
    channels: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: str = "SAME"


def _halving(name, channels):
    return Conv(name, channels, 3, 3, stride=2, padding="VALID")


def _chain(name, *layers):
    """Convolutions name_1, name_2, ... of (channels, height, width)."""
    return [Conv(f"{name}_{i}", *layer) for i, layer in enumerate(layers, 1)]


def _block_a(pooled):
    return [
        [Conv("branch1x1", 64)],
        _chain("branch5x5", (48,), (64, 5, 5)),
        _chain("branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3)),
        ["mean", Conv("branch_pool", pooled)],
    ]


def _block_c(inner):
    down, across = (inner, 7, 1), (inner, 1, 7)
    return [
        [Conv("branch1x1", 192)],
        _chain("branch7x7", (inner,), across, (192, 7, 1)),
        _chain("branch7x7dbl", (inner,), down, across, down, (192, 1, 7)),
        ["mean", Conv("branch_pool", 192)],
    ]


def _block_e(pool):
    def fork(name):
        return (Conv(f"{name}a", 384, 1, 3), Conv(f"{name}b", 384, 3, 1))

    return [
        [Conv("branch1x1", 320)],
        [*_chain("branch3x3", (384,)), fork("branch3x3_2")],
        [*_chain("branch3x3dbl", (448,), (384, 3, 3)), fork("branch3x3dbl_3")],
        [pool, Conv("branch_pool", 192)],
    ]


# Each stage: branches side by side, of layers one after another; a tuple of layers
# stands for all of them side by side, a string for pooling. Names are of the file.
STAGES = {
    "64": [
        [
            _halving("Conv2d_1a_3x3", 32),
            Conv("Conv2d_2a_3x3", 32, 3, 3, padding="VALID"),
            Conv("Conv2d_2b_3x3", 64, 3, 3),
            "halving max",
        ]
    ],
    "192": [
        [
            Conv("Conv2d_3b_1x1", 80),
            Conv("Conv2d_4a_3x3", 192, 3, 3, padding="VALID"),
            "halving max",
        ]
    ],
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": [
        [_halving("branch3x3", 384)],
        [*_chain("branch3x3dbl", (64,), (96, 3, 3)), _halving("branch3x3dbl_3", 96)],
        ["halving max"],
    ],
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": [
        [*_chain("branch3x3", (192,)), _halving("branch3x3_2", 320)],
        [
            *_chain("branch7x7x3", (192,), (192, 1, 7), (192, 7, 1)),
            _halving("branch7x7x3_4", 192),
        ],
        ["halving max"],
    ],
    "Mixed_7b": _block_e("mean"),
    "Mixed_7c": _block_e("max"),
}


def _pool(x, start, combine, stride=1, padding="SAME"):
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, start, combine, window, strides, padding)


def _mean(x):
    """Means over 3 x 3 pixels, of those that are in the image."""
    total = functools.partial(_pool, start=0.0, combine=jax.lax.add)
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


_max = functools.partial(_pool, start=-jnp.inf, combine=jax.lax.max)
POOLS = {
    "mean": _mean,
    "max": _max,
    "halving max": functools.partial(_max, stride=2, padding="VALID"),
}


def _run(convolve: Callable, images) -> dict[str, jax.Array]:
    """The output of each stage, by name; `convolve` takes (name, layer, x)."""

    def run_layer(stage, layer, x):
        if isinstance(layer, str):
            return POOLS[layer](x)
        if isinstance(layer, Conv):
            prefix = f"{stage}." if stage.startswith("Mixed") else ""
            return convolve(prefix + layer.name, layer, x)
        return jnp.concatenate([run_layer(stage, each, x) for each in layer], axis=-1)

    def run_branch(stage, layers, x):
        for layer in layers:
            x = run_layer(stage, layer, x)
        return x

    outputs, x = {}, images
    for stage, branches in STAGES.items():
        ends = [run_branch(stage, layers, x) for layers in branches]
        outputs[stage] = x = jnp.concatenate(ends, axis=-1)
    return outputs


def _convolve(x, kernel, layer):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (layer.stride, layer.stride),
        layer.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=PRECISION,
    )


def apply(params: dict[str, Any], images: jax.Array) -> Features:
    """Computes the features of images.

    Args:
      params: see `make_inception`.
      images: [batch, 299, 299, 3] in [-1, 1], from one of `resize.CONVENTIONS`.

    Raises:
      ValueError: if the images are not of that shape.
    """
    if images.shape[1:] != (299, 299, 3):
        raise ValueError(f"images must be [batch, 299, 299, 3], not {images.shape}")
    activations = {}

    def convolve(name, layer, x):
        x = _convolve(x, params[name]["kernel"], layer)
        x = jax.nn.relu(x + params[name]["bias"].reshape(1, 1, 1, -1))
        activations[name] = x
        return x

    outputs = _run(convolve, jnp.asarray(images, jnp.float32))
    means = {name: jnp.mean(output, axis=(1, 2)) for name, output in outputs.items()}
    pooled = means["Mixed_7c"]
    unbiased = jnp.matmul(pooled, params["fc"]["kernel"], precision=PRECISION)
    spatial = activations["Mixed_6d.branch1x1"][..., :7]
    return Features(
        pool_3=pooled,
        logits_unbiased=unbiased,
        logits=unbiased + params["fc"]["bias"].reshape(1, -1),
        spatial=spatial.reshape(len(spatial), -1),
        mean_64=means["64"],
        mean_192=means["192"],
        mean_768=means["Mixed_6e"],
    )


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the published tensors, as PyTorch orders their axes."""
    shapes = {}

    def record(name, layer, x):
        size = (layer.height, layer.width)
        shapes[f"{name}.conv.weight"] = (layer.channels, x.shape[-1], *size)
        shapes.update({f"{name}.bn.{part}": (layer.channels,) for part in NORM})
        return _convolve(x, jnp.zeros((*size, x.shape[-1], layer.channels)), layer)

    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    outputs = jax.eval_shape(functools.partial(_run, record), image)
    channels = outputs["Mixed_7c"].shape[-1]
    return shapes | {"fc.weight": (NUM_CLASSES, channels), "fc.bias": (NUM_CLASSES,)}


def make_inception(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], Callable]:
    """Makes the network of the tensors of `inception_weights.load_weights`.

    Normalisation is folded into the convolution before it, in float64.

    Returns:
      (params, apply): kernels and biases by layer, in NumPy; see `apply`.

    Raises:
      OSError: naming tensors that are missing, unknown or of another shape.
    """
    check(tensors)
    names = [name.removesuffix(".conv.weight") for name in tensors if ".conv." in name]
    params = {name: _folded(tensors, name) for name in names}
    weight, bias = (np.float32(tensors[f"fc.{part}"]) for part in ("weight", "bias"))
    params["fc"] = {"kernel": weight.T, "bias": bias}
    return params, apply


def check(tensors: dict[str, np.ndarray]) -> None:
    """Raises the OSError of `make_inception`."""
    wanted = tensor_shapes()
    found = {name: np.shape(value) for name, value in tensors.items()}
    problems = {
        "missing": wanted.keys() - found.keys(),
        "unknown": found.keys() - wanted.keys(),
        "of another shape": {
            f"{name} {list(found[name])} instead of {list(wanted[name])}"
            for name in wanted.keys() & found.keys()
            if found[name] != wanted[name]
        },
    }
    texts = []
    for what, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            texts.append(f"{what}: {', '.join(sorted(names)[:3])}{more}")
    if texts:
        raise OSError(f"not the tensors of the Inception network; {'; '.join(texts)}")


def _folded(tensors, name):
    kernel = np.asarray(tensors[f"{name}.conv.weight"], np.float64)
    scale, bias, mean, variance = (
        np.asarray(tensors[f"{name}.bn.{part}"], np.float64) for part in NORM
    )
    scale = scale / np.sqrt(variance + NORM_EPS)
    return {
        "kernel": (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32),
        "bias": (bias - mean * scale).astype(np.float32),
    }
