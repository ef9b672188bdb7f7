"""Compiles pieces of a training for TPUs and prints what the compiler said, as JSON.

  python tests/compiled_pieces.py

It needs libtpu and no TPU. Without --json it prints the table of tests/test_compiled.py
anew, to be pasted there when a piece has changed on purpose. Repeats give the same
cycles and code size, also in another process; only the seconds differ.
"""

import dataclasses
import json
import os
import sys
import time
from importlib import metadata

if __name__ == "__main__":
    os.environ.update(
        JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )
    os.environ.pop("XLA_FLAGS", None)

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp

from ddpm_jax.cli.command import tell_compilers
from ddpm_jax.compiled import programs, text, topologies, worker
from ddpm_jax.experiment import build, config
from ddpm_jax.networks import layers
from ddpm_jax.networks.convolutions import Conv3x3
from ddpm_jax.networks.normalization import GroupNorm
from ddpm_jax.sampling import portable
from ddpm_jax.training.ema import Average, constant
from ddpm_jax.training.keys import random_key
from ddpm_jax.training.optimizers import make_optimizer
from ddpm_jax.training.step import init_state, make_train_step

tell_compilers()  # as the mains do

CHANNELS, GROUPS, EPS = 64, 16, 1e-6
STEP = (  # a whole step, with everything in it, that compiles within a minute
    "network.channels=16",
    "network.channel_mults=1,",
    "network.num_groups=4",
    "network.attention_resolutions=()",
    "timesteps.num_steps=10",
    "data.batch_size=64",
)
CONFIG = os.path.join(os.path.dirname(__file__), "..", "configs", "digits.py")


class HalfResBlock(nn.Module):
    """Norm, SiLU, conv."""

    @nn.compact
    def __call__(self, x):
        h = GroupNorm(GROUPS, EPS, nn.silu, name="norm")(x)
        return Conv3x3(CHANNELS, "float32", name="conv")(h)


def block(module, devices, size=8, images=32):
    """A block and its gradient; batches go last but one, or layout copies dominate."""

    def loss(params, x):
        out = module.apply(params, x.transpose(2, 0, 1, 3))
        return jnp.sum(out.transpose(1, 2, 0, 3) ** 2)

    shape = jax.ShapeDtypeStruct((size, size, images, CHANNELS), jnp.float32)
    params = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x.transpose(2, 0, 1, 3)), shape
    )
    return on(devices, jax.grad(loss, (0, 1)), params, shape)


def optimizer(devices):
    """Adam, clipping and the average, over small leaves and large ones."""
    sizes = [(3, 3, 64, 64), (64,), (64, 64), (64,)]
    params = {
        f"{i}_{j}": jax.ShapeDtypeStruct(size, jnp.float32)
        for i in range(6)
        for j, size in enumerate(sizes)
    }
    tx, _ = make_optimizer("adam", 1e-3)

    def loss(params, batch, key):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), {}

    state = jax.eval_shape(lambda params: init_state(params, tx), params)
    key = jax.eval_shape(jax.random.key, 0)
    return on(
        devices,
        make_train_step(loss, tx, {"ema": Average(constant)}),
        state,
        {},
        key,
        donate=0,
    )


def exported_sampler(model, devices):
    """The sampler of a file for any number of images on any platform, of a device."""
    model = dataclasses.replace(model, params=model.init(random_key(0)))
    content = portable.trace_sampler(model).serialize()
    images = jax.ShapeDtypeStruct((64 // len(devices),), jnp.int32)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    return on(devices, jax.export.deserialize(content).call, seed, images, images)


def on(devices, function, *shapes, donate=()):
    """Lowers for one device."""
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    return jax.jit(function, donate_argnums=donate).lower(*shapes)


def lowered(devices):
    """The pieces, by name."""
    settings = config.read_config(CONFIG, STEP)
    built = build.build(settings)
    attention = layers.Attention(1, GROUPS, EPS, "float32")
    yield "half a ResBlock", block(HalfResBlock(), devices)
    yield "of four larger images", block(HalfResBlock(), devices, 16, 4)
    yield "attention", block(attention, devices)
    yield "optimizer", optimizer(devices)
    yield "training step", worker.lower_training(built, devices)
    yield "sampler", worker.lower_sampling(built.model, 64, devices)
    yield "exported sampler", exported_sampler(built.model, devices)


def talking(devices):
    """A program that does tell the host something, to see that this is seen."""

    def function(x):
        jax.debug.callback(lambda x: None, x.sum())
        return 2 * x

    return on(devices, function, jax.ShapeDtypeStruct((8, 128), jnp.float32))


def figures(topology, devices):
    """Yields what is pinned of each piece, and what holds of it."""
    for name, program in lowered(devices):
        start = time.monotonic()
        done = program.compile()
        made = programs.read(done, time.monotonic() - start)
        programs.keep(made, program, topology)
        module = text.parse(done.as_text())
        mixed = text.fusions_with(module, " convolution(", "threefry")
        yield (
            name,
            {
                "cycles": made.total_cycles,
                "code": made.memory["code"],
                "seconds": made.seconds,
                "all_reduces": len(made.all_reduces),
                "collectives": len(text.collectives(module)),
                "host_transfers": made.host_transfers,
                "convolutions_with_threefry": len(mixed),
                "lengths_known": made.lengths_known,
            },
        )


def main():
    """Prints them."""
    topology = topologies.parse("v5e:2x2")
    devices, said = topologies.devices(topology), {}
    for name, made in figures(topology, devices):
        said[name] = made
        print(f"{name}: {made}", file=sys.stderr, flush=True)
    host = text.host_transfers(text.parse(talking(devices).compile().as_text()))
    huge = on(devices, lambda x: x + 1, jax.ShapeDtypeStruct((2**33,), jnp.float32))
    refused = programs._compile(huge).refused
    if "--json" in sys.argv:
        print(json.dumps({"pieces": said, "talking": len(host), "refused": refused}))
        return
    print(f'LIBTPU = "{metadata.version("libtpu")}"\nPINNED = {{')
    for name, made in said.items():
        print(f'    "{name}": ({made["cycles"]:_}, {made["code"]:_}),')
    print("}")


if __name__ == "__main__":
    main()
