"""What a training will take, before any of it: memory, computation, images.

Nothing is compiled or run. The gradient of the loss is traced to a program of shapes,
and read line by line: what is alive at once is the memory, what multiplies matrices is
the computation.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.experiment.build import Experiment, build
from ddpm_jax.experiment.config import override
from ddpm_jax.experiment.cost import activations, flops, num_bytes, program_of
from ddpm_jax.experiment.sections import attempt
from ddpm_jax.training.keys import random_key


class Plan(NamedTuple):
    """A training in numbers. Computation is in floating-point operations.

    Attributes:
      devices: how many share a batch.
      batch_size: the images of a step, on all of them.
      num_microbatches: in how many parts a device goes through its share.
      part: images in such a part, the most if they are not equal.
      num_steps: steps of the training.
      num_params: parameters of the network.
      memory: bytes on each device, by what they are for.
      step_flops: of training, for each image of each step.
      call_flops: of a call of the network, for each image.
      sample_flops: of a sample, with all its calls.
      network_calls: how many these are.
    """

    devices: int
    batch_size: int
    num_microbatches: int
    part: int
    num_steps: int
    num_params: int
    memory: dict[str, int]
    step_flops: int
    call_flops: int
    sample_flops: int
    network_calls: int


def plan(experiment: Experiment, devices: int) -> Plan:
    """Plans a training on so many devices.

    Raises:
      ConfigError: where it does not say how many images a step has.
    """
    options, batch_size = experiment.training, experiment.dataset.batch_size
    state, key = experiment.abstract_state(), random_key(0)
    each = num_bytes(state.params)
    part = math.ceil(batch_size / (devices * options.num_microbatches))
    labels = _shape((part,), np.int32)
    batch = {
        "image": _shape((part, *experiment.model.image_shape), np.uint8),
        "label": labels,
        "id": _shape((part,), np.uint32),
    }
    cond = labels if experiment.model.num_classes else None
    x_t = _shape((part, *experiment.model.image_shape), np.float32)
    gradient = jax.grad(experiment.loss_fn, has_aux=True)
    step = attempt("loss", program_of, gradient, state.params, batch, key)
    call = program_of(experiment.model.network.apply, state.params, x_t, labels, cond)
    keys = _shape((part,), key.dtype)
    sample = program_of(experiment.model.sample_fn, state.params, keys, cond)
    return Plan(
        devices=devices,
        batch_size=batch_size,
        num_microbatches=options.num_microbatches,
        part=part,
        num_steps=options.num_steps,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        memory={
            "parameters": each,
            "their averages": num_bytes(state.averages),
            "optimizer": num_bytes(state.opt_state),
            # Those of a part of the batch, and the sum over the parts.
            "gradients": each * (1 if options.num_microbatches == 1 else 2),
            "activations": activations(step),
        },
        step_flops=flops(step) // part,
        call_flops=flops(call) // part,
        sample_flops=flops(sample) // part,
        network_calls=experiment.model.network_calls,
    )


def report(
    plan: Plan, limit: int | None = None, others: Iterable[tuple[str, Plan]] = ()
) -> str:
    """Returns a plan as a table to read.

    Args:
      plan: the plan.
      limit: bytes of a device's memory, where known.
      others: plans that need less of it, each behind the change of the config.
    """
    together = sum(plan.memory.values())
    room = ""
    if limit:
        room = "of the" if together <= limit else "MORE than the"
        room += f" {_mega(limit)} there are"
    parts = f" x {plan.num_microbatches} parts" if plan.num_microbatches > 1 else ""
    devices = f"{plan.devices} device{'s' if plan.devices > 1 else ''}"
    notes = {"activations": f"about, of {plan.part:,} images at a time"}
    rows = [
        (f"memory, each of {devices}", "", ""),
        *((f"  {k}", _mega(v), notes.get(k, "")) for k, v in plan.memory.items()),
        ("  together", _mega(together), room),
    ]
    for change, other in others:
        ratio = other.step_flops / plan.step_flops
        cost = f", {ratio:.2f} times the computation" if ratio > 1 else ""
        note = f"with --config.{change}{cost}"
        rows.append(("", _mega(sum(other.memory.values())), note))
    images = plan.num_steps * plan.batch_size
    rows += [
        ("network", "", ""),
        ("  parameters", f"{plan.num_params:,}", ""),
        ("  a call, an image", flop(plan.call_flops), ""),
        ("  a sample", flop(plan.sample_flops), f"{plan.network_calls:,} calls"),
        ("training", "", ""),
        ("  an image and its gradient", flop(plan.step_flops), ""),
        ("  a step", flop(plan.step_flops * plan.batch_size), ""),
        (
            "  images in a step",
            f"{plan.batch_size:,}",
            f"{devices}{parts} x {plan.part:,}",
        ),
        ("  steps", f"{plan.num_steps:,}", ""),
        ("  images in all", f"{images:,}", ""),
        ("  in all", flop(plan.step_flops * images), ""),
    ]
    refused = cannot_share(plan.batch_size, plan.devices, plan.num_microbatches)
    return "\n".join([table(rows), refused] if refused else [table(rows)])


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Returns rows of a name, a number and a remark as lines."""
    return "\n".join(f"{a:<28}{b:>16}  {c}".rstrip() for a, b, c in rows)


def cannot_share(batch_size: int, devices: int, num_microbatches: int) -> str | None:
    """Returns why a batch cannot be shared equally, and which can, or None."""
    unit = devices * num_microbatches
    if batch_size % unit == 0:
        return None
    below = batch_size // unit * unit
    near = " or ".join(str(size) for size in (below, below + unit) if size)
    parts = f" x {num_microbatches} parts" if num_microbatches > 1 else ""
    by = f"{devices} device{'s' if devices > 1 else ''}{parts}"
    can = f"--config.data.batch_size={near} can"
    return f"batch_size {batch_size} cannot be shared by {by}: {can}"


def describe(experiment: Experiment, devices: int) -> str:
    """Returns the plan of a training on so many devices, and what needs less memory.

    Raises:
      ConfigError: see `plan`.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    here, others = with_lighter(experiment, devices, limit)
    return report(here, limit, others)


def with_lighter(
    experiment: Experiment, devices: int, limit: int | None = None
) -> tuple[Plan, list[tuple[str, Plan]]]:
    """Plans a training; behind a change of the config, one of less memory.

    Raises:
      ConfigError: see `plan`.
    """
    here, others = plan(experiment, devices), []
    if experiment.model.protocol()["network"].get("remat") is False:
        change = "network.remat=True"
        lighter = build(override(experiment.config, [change]))
        others.append((change, plan(lighter, devices)))
    parts = _microbatches(here, limit)
    if parts is not None:
        change = f"train.num_microbatches={parts}"
        smaller = experiment.training._replace(num_microbatches=parts)
        smaller = experiment._replace(training=smaller)
        others.append((change, plan(smaller, devices)))
    return here, others


def _microbatches(plan, limit):
    """The fewest parts, but more, that fit into the memory; else the next there are."""
    if plan.batch_size % (plan.devices * plan.num_microbatches):
        return None
    share = plan.part * plan.num_microbatches
    more = [n for n in range(plan.num_microbatches + 1, share + 1) if share % n == 0]
    of_one = plan.memory["activations"] / plan.part
    rest = {**plan.memory, "activations": 0, "gradients": 2 * plan.memory["parameters"]}
    left = (limit or 0) - sum(rest.values())
    fitting = (n for n in more if of_one * (share // n) <= left)
    return next(fitting, more[0] if more else None)


def _shape(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def _mega(num_bytes):
    return f"{num_bytes / 1e6:,.1f} MB"


def flop(number: float) -> str:
    """Returns a number of operations in words."""
    power = min(int(math.log10(max(number, 1))) // 3, 6)
    return f"{number / 1000**power:,.1f} {' kMGTPE'[power]}FLOP"
