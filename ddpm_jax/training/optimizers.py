"""Optimizers: gradient clipping, an optax optimizer, a learning-rate schedule."""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import contrib

from ddpm_jax.errors import unknown

DECAYS = ("constant", "cosine", "linear", "inverse_sqrt")
DECAYED = ("all", "kernels")
DTYPES = (None, "float32", "bfloat16")  # float16 has no room for small gradients
# What the settings of optax must be, in words and as a rule.
_SHARE = "lie in [0, 1)", lambda value: 0 <= value < 1
_FROM_0 = "be 0 or more", lambda value: 0 <= value < math.inf
_FLOAT = "be 'float32' or 'bfloat16'", lambda value: value in DTYPES
_RULES = {
    "b1": _SHARE,
    "b2": _SHARE,
    "beta": _SHARE,
    "ns_steps": ("be 1 or more", lambda value: value >= 1),
    "consistent_rms": ("be positive", lambda value: value is None or value > 0),
    "momentum": ("lie in [0, 1)", lambda value: value is None or 0 <= value < 1),
    "eps": ("be positive", lambda value: 0 < value < math.inf),
    "eps_root": _FROM_0,
    "weight_decay": _FROM_0,
    "nesterov": ("be True or False", lambda value: isinstance(value, bool)),
    "mu_dtype": _FLOAT,
    "accumulator_dtype": _FLOAT,
}


def kernels(params):
    """Returns, as a tree of booleans, which parameters are kernels.

    All but biases, scales and embeddings: what is multiplied with features.
    """

    def is_kernel(path, leaf):
        return path[-1:] == (jax.tree_util.DictKey("kernel"),) and leaf.ndim > 1

    return jax.tree.map_with_path(is_kernel, params)


def muon(
    learning_rate: float | Callable,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    consistent_rms: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay_mask: Callable | None = None,
) -> optax.GradientTransformation:
    """Makes Muon (Jordan et al. 2024) of kernels, and Adam of everything else.

    A kernel is orthogonalised as the matrix from all its inputs to its outputs, which
    are its last axis; those of a convolution are its places and channels. One of three
    axes is of several blocks, along the first, and each has a matrix of its own.

    Args:
      learning_rate: of both, as a number or a function of the updates made.
      beta: decay of the momentum.
      ns_steps: Newton-Schulz iterations.
      nesterov: whether the momentum looks ahead, of Adam too.
      weight_decay: of kernels.
      consistent_rms: root mean square of an update, such as 0.2, which lets the
        learning rate be Adam's; None for one that grows with a kernel's shape.
      b1: of Adam.
      b2: of Adam.
      weight_decay_mask: params -> which of them decay, as a tree of booleans.
    """

    def matrices(params):
        def matrix(leaf, is_kernel):
            outputs = leaf.ndim - 1
            inputs = tuple(range(leaf.ndim == 3, outputs))
            return contrib.MuonDimensionNumbers(inputs, outputs) if is_kernel else None

        return jax.tree.map(matrix, params, kernels(params))

    return contrib.muon(
        learning_rate,
        beta=beta,
        ns_steps=ns_steps,
        nesterov=nesterov,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        consistent_rms=consistent_rms,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=matrices,
    )


OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "adamax": optax.adamax,
    "radam": optax.radam,
    "sgd": optax.sgd,
    "muon": muon,
}
# What each calls the tree of what its weight decay is of.
_MASKS = {"adamw": "mask", "muon": "weight_decay_mask"}


def make_optimizer(
    name: str | Callable = "adam",
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    decay: str = "constant",
    decay_steps: int | None = None,
    decay_start: int | None = None,
    decayed: str = "all",
    clip_norm: float | None = 1.0,
    num_steps: int | None = None,
    **settings,
) -> tuple[optax.GradientTransformation, Callable]:
    """Makes an optimizer and the learning rate it follows.

    Args:
      name: "adam", "adamw", "adamax", "radam", "sgd" or "muon", as optax calls them; or
        a function of the same form, (learning_rate, **settings) ->
        GradientTransformation.
      learning_rate: its peak.
      warmup_steps: steps over which it rises from 0, linearly.
      decay: "constant", or to 0 after the warm-up along a "cosine" or "linear", or
        "inverse_sqrt", by sqrt(decay_start / step) (Karras et al. 2024).
      decay_steps: the step at which it reaches 0, by default the last.
      decay_start: the step from which "inverse_sqrt" decays.
      decayed: what weight decay is of: "all", or "kernels", which leaves biases, scales
        and embeddings alone.
      clip_norm: largest global norm of the (averaged) gradient, or None.
      num_steps: the last step of the training, where it is known.
      **settings: further arguments of the optax optimizer, such as b1, b2, eps,
        weight_decay, momentum.

    Returns:
      (tx, learning_rate), the latter a function of the number of updates made.

    Raises:
      ValueError: for unknown names, for a decay without its number of steps, and for
        numbers with which nothing can be trained.
      TypeError: for a setting that the optax optimizer does not have.
    """
    if not callable(name) and name not in OPTIMIZERS:
        raise ValueError(unknown("optimizer", name, OPTIMIZERS))
    make = name if callable(name) else OPTIMIZERS[name]
    if not 0 < learning_rate < math.inf or warmup_steps < 0:
        raise ValueError("learning_rate must be positive, warmup_steps not negative")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    if decay_steps is None and num_steps is not None:
        decay_steps = max(num_steps, warmup_steps + 1)
    rate = _learning_rate(learning_rate, warmup_steps, decay, decay_steps, decay_start)
    known = {
        *inspect.signature(make_optimizer).parameters,
        *inspect.signature(make).parameters,
    } - {"settings"}
    for setting in settings:
        if setting not in known:
            raise TypeError(unknown(f"setting of {make.__name__}", setting, known))
    for setting in settings.keys() & _RULES.keys():
        words, fits = _RULES[setting]
        if not fits(settings[setting]):
            raise ValueError(f"{setting} must {words}, got {settings[setting]!r}")
    if decayed not in DECAYED:
        raise ValueError(unknown("value of decayed", decayed, DECAYED))
    if decayed == "kernels":
        if name not in _MASKS:
            raise ValueError(
                f"decayed='kernels' is of {' and '.join(_MASKS)}, not of {name}"
            )
        settings[_MASKS[name]] = kernels
    clip = clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, make(rate, **settings)), rate


def remarks(
    num_steps: int,
    warmup_steps: int = 0,
    decay: str = "constant",
    decay_steps: int | None = None,
    decay_start: int | None = None,
    **others,
) -> list[str]:
    """Returns, in a line each, what is odd about a learning rate, but can be meant.

    Args:
      num_steps: the last step of the training.
      warmup_steps: see `make_optimizer`.
      decay: see there.
      decay_steps: see there.
      decay_start: see there.
      **others: further arguments of `make_optimizer`.

    Raises:
      ValueError: if it is 0 before the training ends.
    """
    ends = decay in ("cosine", "linear")
    if ends and decay_steps is not None and decay_steps < num_steps:
        raise ValueError(
            f"the learning rate is 0 from decay_steps {decay_steps} on, but the "
            f"training goes on to step {num_steps}: give decay_steps={num_steps}, or "
            "None, which follows train.num_steps"
        )
    found = []
    if not ends and decay_steps is not None:
        found.append(
            f"optimizer.decay_steps {decay_steps} has no effect on a decay {decay!r}"
        )
    if decay != "inverse_sqrt" and decay_start is not None:
        found.append(
            f"optimizer.decay_start {decay_start} has no effect on a decay {decay!r}"
        )
    if warmup_steps >= num_steps:
        found.append(
            f"optimizer.warmup_steps {warmup_steps} are not over when the training "
            f"ends, at step {num_steps}: the learning rate only rises"
        )
    return found


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients down to this global norm where theirs is larger.

    The transformation of optax with the same name, by the `global_norm` of this module.
    """

    def clip(grads, params):
        scale = jnp.minimum(1.0, max_norm / global_norm(grads))
        return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)

    return optax.stateless(clip)


def global_norm(tree) -> Float[Array, ""]:
    """The square root of the sum of all squares of a tree of arrays.

    The squares of arrays of one shape are added up before they are summed: for most of
    a network's arrays, a TPU spends longer on the end of a sum than on reading them.
    """
    squares = {}
    for leaf in jax.tree.leaves(tree):
        squares.setdefault(leaf.shape, []).append(jnp.square(leaf))
    return jnp.sqrt(sum(jnp.sum(sum(alike)) for alike in squares.values()))


def _learning_rate(peak, warmup_steps, decay, decay_steps, decay_start):
    if decay not in DECAYS:
        raise ValueError(unknown("decay", decay, DECAYS))
    if decay == "inverse_sqrt":
        if decay_start is None or decay_start < max(1, warmup_steps):
            raise ValueError(
                "decay 'inverse_sqrt' needs decay_start, a step after the warm-up"
            )

        def after(step):
            past = jnp.maximum((step + warmup_steps) / decay_start, 1.0)
            return peak / jnp.sqrt(past)

    elif decay == "constant":
        after = optax.constant_schedule(peak)
    elif decay_steps is None or decay_steps <= warmup_steps:
        raise ValueError(f"decay {decay!r} needs decay_steps beyond the warm-up")
    elif decay == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps - warmup_steps)
    else:
        after = optax.linear_schedule(peak, 0.0, decay_steps - warmup_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])
