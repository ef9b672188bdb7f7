"""Compiles a config's training step and sampler for a topology: a process of its own.

`programs.ask` starts it, with the config and the topology as JSON on its input.
"""

import json
import sys

import jax
import numpy as np

from ddpm_jax.compiled import programs, topologies
from ddpm_jax.distributed.devices import mapped_examples, mapped_step
from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.experiment.build import Experiment, build, train_step
from ddpm_jax.experiment.model import Model
from ddpm_jax.training.keys import random_key


def lower_training(experiment: Experiment, devices):
    """Lowers the training step, as training maps it over devices."""
    batch_size = experiment.dataset.batch_size
    each = (len(devices), batch_size // len(devices))
    batch = {
        "image": _shape((*each, *experiment.model.image_shape), np.uint8),
        "label": _shape(each, np.int32),
        "id": _shape(each, np.uint32),
    }
    step = mapped_step(train_step(experiment), devices)
    key = jax.eval_shape(lambda: random_key(0))
    votes = _shape(each[:1], np.float32)
    return step.lower(experiment.abstract_state(), batch, key, votes)


def lower_sampling(model: Model, batch_size: int, devices):
    """Lowers the config's sampler for a batch, cut over devices."""
    key = jax.eval_shape(lambda: random_key(0))
    labels = _shape((batch_size,), np.int32) if model.num_classes else None
    sample = mapped_examples(model.sample_fn, devices)
    params = model.abstract_params()
    return sample.lower(params, (_shape((batch_size,), key.dtype), labels))


def main() -> int:
    """Answers one request."""
    request, name = json.load(sys.stdin)
    try:
        topology = topologies.parse(name)
        devices = topologies.devices(topology)
        experiment = build(request)
        batch_size = experiment.dataset.batch_size
        lowered = {
            "training": lower_training(experiment, devices),
            "sampling": lower_sampling(experiment.model, batch_size, devices),
        }
        for what, program in lowered.items():
            made = programs.compile_program(
                program,
                topology,
                lambda said, what=what: _say(progress=f"{what}: {said}"),
            )
            _say(**{what: made._asdict()})
    except (ConfigError, OSError, jax.errors.JaxRuntimeError) as error:
        _say(error=one_line(error)[:400])
        return 1
    return 0


def _say(**values):
    print(f"{programs.SAYS}{json.dumps(values)}", flush=True)


def _shape(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


if __name__ == "__main__":
    sys.exit(main())
