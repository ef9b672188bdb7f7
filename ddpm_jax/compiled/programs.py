"""Compiling for devices that need not be here, and what is kept of it.

A compiler for TPUs wants its environment before JAX is imported, so it works in a
process of its own, `ddpm_jax.compiled.worker`.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax

from ddpm_jax import files, places
from ddpm_jax.compiled import text, topologies
from ddpm_jax.compiled.topologies import Topology
from ddpm_jax.errors import ConfigError


class Compiled(NamedTuple):
    """What a compiler said of a program.

    Attributes:
      seconds: it took.
      memory: bytes on each device: "arguments", "outputs", "aliased" (outputs that take
        the place of arguments), "temporary", "code".
      cycles: estimated, as [op_name, opcode, cycles]; none but for TPUs.
      all_reduces: bytes of each, on each device.
      traffic: bytes that its operations read and write.
      host_transfers: how many instructions exchange something with the host.
      lengths_known: whether all of its loops count up to a constant.
      refused: what the compiler said instead, where it does not fit into the memory.
      cached: whether it was compiled before.
      unsaid: how many operations `cycles` leaves out, as the compiler has no estimate.
    """

    seconds: float
    memory: dict[str, int]
    cycles: list[list]
    all_reduces: list[int]
    traffic: int
    host_transfers: int
    lengths_known: bool
    refused: str | None = None
    cached: bool = False
    unsaid: int = 0

    @property
    def total_cycles(self) -> int:
        """Of all operations."""
        return sum(cycles for *_, cycles in self.cycles)

    @property
    def num_bytes(self) -> int:
        """All that it needs on each device."""
        return sum(self.memory.values()) - 2 * self.memory.get("aliased", 0)


def compile_program(
    lowered, topology: Topology, tell: Callable[[str], None] = lambda said: None
) -> Compiled:
    """Compiles a lowered program, or finds what was said of the same one before.

    Args:
      lowered: of `jax.jit` or `jax.pmap`, for the topology's devices.
      topology: what it is for.
      tell: called with a line before it takes long.
    """
    path = _path(lowered, topology)
    if path.is_file():
        return Compiled(**json.loads(path.read_text()))._replace(cached=True)
    tell(f"compiling for {topology.name}; minutes for large networks")
    made = _compile(lowered)
    keep(made, lowered, topology)
    return made


def keep(made: Compiled, lowered, topology: Topology) -> None:
    """Keeps what a compiler said of a lowered program."""
    with files.atomic_write(_path(lowered, topology)) as partial:
        partial.write_text(json.dumps(made._asdict()))


def read(program, seconds: float) -> Compiled:
    """Reads what a compiler made; `seconds` is what it took."""
    stats, module = program.memory_analysis(), text.parse(program.as_text())
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    cycles = text.cycles_by_name(module).most_common()
    return Compiled(
        seconds=round(seconds, 1),
        memory=memory,
        cycles=[[*name, number] for name, number in cycles],
        all_reduces=text.all_reduces(module),
        traffic=text.traffic(module),
        host_transfers=len(text.host_transfers(module)),
        lengths_known=all(one.known for one in text.taken(module)),
        unsaid=text.unsaid(module),
    )


def ask(
    request: dict[str, Any], topology: Topology, tell: Callable[[str], None]
) -> dict[str, Compiled]:
    """Compiles the training step and the sampler of a config, in another process.

    Args:
      request: the config, which goes to that process whole.
      topology: the devices, of which none need be here.
      tell: called with what goes on.

    Returns:
      What the compiler said, of "training" and "sampling".

    Raises:
      ConfigError: one line: what the compiler says.
    """
    environment = os.environ | topologies.ENVIRONMENT | _libtpu_args()
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # ours holds what is said, too
    worker = [sys.executable, "-m", "ddpm_jax.compiled.worker"]
    with tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen(
            worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env=environment,
        )
        with process:
            process.stdin.write(json.dumps([request, topology.name]))
            process.stdin.close()
            said = {}
            for line in process.stdout:
                if not line.startswith(SAYS):  # what libraries print
                    continue
                said |= (new := json.loads(line.removeprefix(SAYS)))
                if "progress" in new:
                    tell(new["progress"])
        noise.seek(0)
        if "error" in said or process.returncode:
            last = "".join(noise.read().strip().splitlines()[-1:])
            crashed = f"crashed with signal {-process.returncode}"
            how = crashed if process.returncode < 0 else f"failed: {last}"
            raise ConfigError(said.get("error") or f"the compiler {how}")
    return {name: Compiled(**said[name]) for name in ("training", "sampling")}


SAYS = "ddpm_jax says "  # what begins a line of the worker's output


def _path(lowered, topology):
    """Where what is said of a program is kept, by all that decides it."""
    key = "\n".join([_versions(topology), topology.name, lowered.as_text()])
    name = hashlib.sha256(key.encode()).hexdigest()
    return places.cache_dir() / "compiled" / f"{name}.json"


def _versions(topology):
    """All beside the program that decides what a compiler makes, or how it is read."""
    plugin, _ = topologies.PLUGINS[topology.platform]
    flags = [os.environ.get("XLA_FLAGS", ""), *_libtpu_args().values()]
    version = metadata.version(plugin)
    return "\n".join([_FORMAT, jax.__version__, plugin, version, *flags])


def _libtpu_args():
    name = "LIBTPU_INIT_ARGS"
    given = os.environ.get(name, "")
    return {name: topologies.with_flags(given, topologies.LIBTPU_FLAGS)}


_FORMAT = "1"  # grows when something else is read


def _compile(lowered):
    start = time.monotonic()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds, why = time.monotonic() - start, " ".join(str(error).split())[:200]
        return Compiled(round(seconds, 1), {}, [], [], 0, 0, True, refused=why)
    return read(program, time.monotonic() - start)
