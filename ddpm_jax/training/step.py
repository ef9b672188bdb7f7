"""The training state and the step that advances it.

A step is an ordinary function of (state, batch, key); `axis_name` is all that it knows
of devices. The state holds arrays only, so it can be donated, saved and compared.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ddpm_jax.training import ema
from ddpm_jax.training.optimizers import global_norm


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
      step: the number of steps taken.
      params: parameters.
      averages: averages of them over the steps, by name (see `ema`).
      opt_state: the optimizer's state.
    """

    step: Int[Array, ""]
    params: Any
    averages: dict[str, Any]
    opt_state: Any

    @property
    def ema_params(self):
        """The average from which samples are drawn."""
        return self.averages[ema.MAIN]


def init_state(
    params, tx: optax.GradientTransformation, averages: Iterable[str] = (ema.MAIN,)
) -> TrainState:
    """Makes the state before the first step, with averages of these names."""
    # Copies: a donated buffer must not occur twice.
    copies = {name: jax.tree.map(jnp.copy, params) for name in averages}
    return TrainState(jnp.zeros((), jnp.int32), params, copies, tx.init(params))


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    averages: Mapping[str, Callable],
    num_microbatches: int = 1,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, dict, Array], tuple[TrainState, dict]]:
    """Makes one step of training.

    Args:
      loss_fn: (params, batch, key) -> (loss, metrics).
      tx: the optimizer.
      averages: of each average, (number of the update, from 1) -> its step size.
      num_microbatches: how many parts of the batch are gone through in turn, their
        gradients averaged, to save memory; it must divide the batch of a device.
      axis_name: the mapped axis over which gradients and metrics are averaged, if any.
      skip_nonfinite: whether a step whose metrics are not all finite leaves everything
        but the counts of steps as it was.

    Returns:
      step(state, batch, key) -> (state, metrics), where the key is the run's (it is
      folded with the step here) and metrics are those of the loss and "grad_norm".
    """

    def share_of_loss(params, batch, key):
        """The sum of these over devices is the loss, and so with its gradients."""
        loss, metrics = loss_fn(params, batch, key)
        return loss / num_devices(), metrics

    def num_devices():
        return 1 if axis_name is None else jax.lax.axis_size(axis_name)

    grad_fn = _in_parts(jax.grad(share_of_loss, has_aux=True), num_microbatches)

    def train_step(state, batch, key):
        key = jax.random.fold_in(key, state.step)
        grads, metrics = grad_fn(state.params, batch, key)
        if axis_name is not None:
            grads = jax.lax.psum(grads, axis_name)
            metrics = jax.lax.pmean(metrics, axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step_sizes = {name: each(state.step + 1) for name, each in averages.items()}
        averaged = ema.update(state.averages, params, step_sizes)
        metrics = {**metrics, "grad_norm": global_norm(grads)}
        new = TrainState(state.step + 1, params, averaged, opt_state)
        if skip_nonfinite:
            new = _if_finite(metrics, new, state)
        return new, metrics

    return train_step


def _if_finite(metrics: dict, new: TrainState, old: TrainState) -> TrainState:
    """The new state, or the old one but for what counts steps."""
    finite = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()

    def choose(new, old):
        counts = jnp.issubdtype(new.dtype, jnp.integer)
        return new if counts else jnp.where(finite, new, old)

    return jax.tree.map(choose, new, old)


def _in_parts(grad_fn: Callable, num_parts: int) -> Callable:
    """Averages a gradient function over equal parts of the batch, one after another."""
    if num_parts == 1:
        return grad_fn

    def averaged(params, batch, key):
        def add(total, part):
            grads = grad_fn(params, part, key)
            return jax.tree.map(lambda a, b: a + b / num_parts, total, grads), None

        parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
        shapes = jax.eval_shape(grad_fn, params, batch, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return averaged
