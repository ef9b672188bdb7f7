"""Convolutions with 3 x 3 kernels, as the compilers of each platform do them best.

A doubled image holds each pixel four times, and its convolution multiplies 9 of them
where 4 differ. The mathematics is everywhere the same: on a TPU or GPU it is one
transposed convolution, on a CPU four convolutions with kernels of 2 x 2.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def fan_avg(scale: float = 1.0) -> nn.initializers.Initializer:
    """The initialisation of Ho et al. (2020), where a "zero" scale is 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def conv_3x3(
    x: Float[Array, "batch height width in"], kernel: Float[Array, "3 3 in out"]
) -> Float[Array, "batch height width out"]:
    """A convolution that keeps height and width; the border is padded with zeros."""
    return _conv(x, kernel)


@functools.partial(jax.jit, inline=True)
def doubled_conv_3x3(
    x: Float[Array, "batch height width in"], kernel: Float[Array, "3 3 in out"]
) -> Float[Array, "batch height2 width2 out"]:
    """The same convolution of the image whose pixels are repeated, twice as large."""
    return jax.lax.platform_dependent(x, kernel, cpu=_by_phases, default=_transposed)


def _conv(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=DIMENSIONS
    )


def _by_phases(x, kernel):
    """Rows 2h and 2h + 1 each see two rows of x, and so do the columns."""
    rows = [
        jnp.stack(
            [
                _conv(x, kernel_ij, padding=((1 - i, i), (1 - j, j)))
                for j, kernel_ij in enumerate(_phases(kernel_i, axis=1))
            ],
            axis=3,
        )
        for i, kernel_i in enumerate(_phases(kernel, axis=0))
    ]
    batch, height, width, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _phases(kernel, axis):
    """Of three taps, two fall on the same pixel before it is repeated."""
    a, b, c = jnp.split(kernel, 3, axis)
    return (
        jnp.concatenate([a, b + c], axis),
        jnp.concatenate([a + b, c], axis),
    )


@jax.custom_vjp
def _transposed(x, kernel):
    """To repeat is to convolve zeros between pixels with a 2 x 2 box: 4 x 4 in all."""
    return jax.lax.conv_general_dilated(
        x,
        _boxed(kernel),
        window_strides=(1, 1),
        padding=((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=DIMENSIONS,
    )


def _boxed(kernel):
    for axis in (0, 1):
        before, after = ([(0, 0)] * 4 for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


def _transposed_forward(x, kernel):
    return _transposed(x, kernel), (x, kernel)


def _transposed_backward(kept, dy):
    """Through its adjoint of stride 2: the compiler would reverse whole images.

    The box is the same when it is turned, so the gradient is summed before it is.
    """
    x, kernel = kept
    turned = _boxed(kernel)[::-1, ::-1]

    def adjoint(turned):
        return _conv(dy, turned.swapaxes(2, 3), strides=(2, 2))

    (dturned,) = jax.linear_transpose(adjoint, turned)(x)
    shifts = [(i, j) for i in (0, 1) for j in (0, 1)]
    dkernel = sum(dturned[i : i + 3, j : j + 3] for i, j in shifts)
    return adjoint(turned), dkernel[::-1, ::-1]


_transposed.defvjp(_transposed_forward, _transposed_backward)


@jax.custom_vjp
def laid_out(kernel: Array) -> Array:
    """The kernel; on a GPU its gradient gets the layout of the kernel where it is made.

    There it comes with its output channels first, and the optimizer would turn it in
    each of its passes, and copy what it then cannot change in its place.
    """
    return kernel


def _in_its_layout(_, dkernel):
    order = Layout(tuple(range(dkernel.ndim)))

    def on_gpu(x):
        return jax.lax.optimization_barrier(with_layout_constraint(x, order))

    return (jax.lax.platform_dependent(dkernel, cuda=on_gpu, default=lambda x: x),)


laid_out.defvjp(lambda kernel: (kernel, None), _in_its_layout)


@functools.partial(jax.jit, inline=True)
def _apart(x):
    """Else a GPU's compiler writes an image of biases to add, as large as x."""
    barrier = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(x, cuda=barrier, default=lambda x: x)


@functools.partial(jax.jit, inline=True)
def _pixels_first(x):
    """On a TPU, what convolutions read and write lies as they do: images next to last.

    Its compiler knows, but where attention wants images first, it turns whole blocks
    back and forth, and fewer than eight images it cuts into strips. What is one image
    or has few channels lies better otherwise.
    """
    if x.shape[0] == 1 or x.shape[-1] < 8:
        return x
    order = Layout((1, 2, 0, 3))
    return jax.lax.platform_dependent(
        x, tpu=lambda x: with_layout_constraint(x, order), default=lambda x: x
    )


class Conv3x3(nn.Module):
    """A 3 x 3 convolution with a bias, and what each example adds to it.

    Attributes:
      features: output channels.
      dtype: of the computation.
      scale: of the first kernel, see `fan_avg`.
      convolve: `conv_3x3` or `doubled_conv_3x3`.
    """

    features: int
    dtype: DTypeLike
    scale: float = 1.0
    convolve: Callable[[Array, Array], Array] = conv_3x3

    @nn.compact
    def __call__(self, x, offset=0.0):
        """Convolves x; `offset` [batch, features] is added to the bias.

        As one summand: their gradients then are one sum over the pixels.
        """
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_avg(self.scale), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        of_example = jnp.ndim(offset) > 0
        bias = (bias[None] + offset)[:, None, None]
        x, kernel, bias = (jnp.asarray(a, self.dtype) for a in (x, kernel, bias))
        x = self.convolve(x, laid_out(kernel))
        return _pixels_first((_apart(x) if of_example else x) + bias)
