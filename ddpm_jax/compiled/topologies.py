"""Accelerators that need not be here: their names, their figures, their compilers.

A topology is written `v5e:4x4`, chips along the axes of a TPU slice, or `h100:8`.
"""

import importlib.util
import math
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from ddpm_jax.compiled.h100 import TARGET
from ddpm_jax.errors import ConfigError, reason, unknown
from ddpm_jax.files import of_machine

# The compiler for TPUs unrolls what fits into its window, of 16 MiB if it is not told:
# less halves the time to compile a residual block, for 2 % more cycles. It writes the
# program of each operation anew, though networks repeat them: where equal ones are
# calls, the code of the CIFAR-10 step is half as large. And large products overflow the
# stacks of its threads (signal 11), which are small. A version that does not know one
# of these goes on without it.
_FLAGS = {
    "xla_tpu_scoped_vmem_limit_kib": 11264,
    "xla_tpu_enable_deduplicated_calls": "enabled",
    "fibers_default_thread_stack_size": 8 * 2**20,
}
_FLAGS["undefok"] = ",".join(_FLAGS)
LIBTPU_FLAGS = " ".join(f"--{name}={value}" for name, value in _FLAGS.items())


class Chip(NamedTuple):
    """What its maker says of an accelerator.

    Attributes:
      title: its name.
      flops: peak of bfloat16 products a second, on each device.
      memory: bytes of each device.
      bandwidth: bytes a second between a device and its memory.
      link: bytes a second in each direction of a link between chips.
      axes: of a slice, 0 where every chip is linked with every other.
      clock: cycles a second; 0 where a compiler estimates no cycles.
      devices: that JAX sees on a chip.
      config: as libtpu calls it.
    """

    title: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    axes: int
    clock: float = 0.0
    devices: int = 1
    config: str = "default"


class Topology(NamedTuple):
    """Chips and how they are linked.

    Attributes:
      name: as it was asked for.
      chip: what it is made of.
      sides: chips along each axis.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """How many JAX sees."""
        return math.prod(self.sides) * self.chip.devices

    @property
    def platform(self) -> str:
        """What JAX calls the kind of accelerator."""
        return "tpu" if self.chip.axes else "cuda"

    @property
    def links(self) -> int:
        """Of a chip to its neighbours, which an all-reduce can use at once."""
        if not self.chip.axes:
            return 1
        return sum(min(side - 1, 2) for side in self.sides)


# Figures of a device: cloud.google.com/tpu/docs, and for v3 Jouppi et al. (2023), Table
# 4; NVIDIA's data sheet (SXM, dense). The clock is that at which the matrix units reach
# the peak. A v3 and a TPU7x have two devices on a chip.
GIB = 2**30
CHIPS = {
    "v3": Chip("TPU v3", 61.5e12, 16 * GIB, 450e9, 70e9, 2, 0.94e9, 2),
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 50e9, 3, 1.05e9, config="megacore"),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 50e9, 2, 1.5e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 100e9, 3, 1.75e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1640e9, 100e9, 2, 1.75e9),
    "tpu7x": Chip("TPU7x", 1153.5e12, 96 * GIB, 3690e9, 100e9, 3, 2.2e9, 2),
    "h100": Chip("H100", 989e12, 84942979072, 3352e9, 450e9, 0),
}
EXAMPLES = ("v3:4x4", "v4:2x2x1", "v5e:4x4", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1")
ENVIRONMENT = {  # no machine is asked for its TPU, and several processes may compile
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
PLUGINS = {"tpu": ("libtpu", "plan-tpu"), "cuda": ("jax_cuda12_plugin", "plan-gpu")}


def parse(name: str) -> Topology:
    """Reads a topology's name.

    Raises:
      ConfigError: one line with the names that there are.
    """
    kind, colon, sides = name.strip().lower().partition(":")
    there_are = f"there are {', '.join(EXAMPLES)}, h100:8 and other sizes"
    if kind not in CHIPS:
        raise ConfigError(f"{unknown('accelerator', kind, CHIPS)} ({there_are})")
    chip, numbers = CHIPS[kind], re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides)
    if not colon or not numbers:
        raise ConfigError(f"{name!r} has no size: {there_are}")
    sides = tuple(int(number) for number in sides.split("x"))
    most = chip.axes or 1
    if len(sides) > most or (chip.axes and len(sides) < 2):
        axes = "one number" if most == 1 else f"{2} to {most} numbers"
        axes = "two numbers" if most == 2 else axes
        raise ConfigError(f"{name!r}: the size of {chip.title} is {axes}; {there_are}")
    return Topology(f"{kind}:{'x'.join(map(str, sides))}", chip, sides)


def with_flags(given: str, ours: str) -> str:
    """Returns the flags of an environment, and those of ours that it does not name."""
    named = {flag.partition("=")[0] for flag in given.split()}
    more = [flag for flag in ours.split() if flag.partition("=")[0] not in named]
    return " ".join([given, *more]).strip()


def missing(topology: Topology) -> str | None:
    """Returns what to install to compile for a topology, or None if it is here."""
    module, extra = PLUGINS[topology.platform]
    if importlib.util.find_spec(module):
        return None
    return (
        f"compiling for {topology.chip.title} needs {module}: "
        f"pip install 'ddpm_jax[{extra}]'"
    )


def devices(topology: Topology) -> list[jax.Device]:
    """Returns devices that programs can be compiled for, in one process.

    `ENVIRONMENT` must have been set when JAX was imported.

    Raises:
      ConfigError: if the compiler knows no such topology, or cannot be asked.
      OSError, MemoryError: if the machine fails, which says nothing of the topology.
    """
    if topology.platform == "cuda":
        made = {
            "topology": f"1x{topology.num_devices}x1",
            "target_config": TARGET,
        }
    else:
        sides = topology.sides + (1,) * (3 - len(topology.sides))
        made = {
            "topology_name": topology.name,
            "chip_config_name": topology.chip.config,
            "chips_per_host_bounds": sides,
        }
    try:
        found = topologies.get_topology_desc(platform=topology.platform, **made)
    except Exception as error:  # whatever the plugin raises
        if of_machine(error):
            raise
        raise ConfigError(
            f"the compiler takes no {topology.name}: {reason(error)}"
        ) from error
    return list(found.devices)
