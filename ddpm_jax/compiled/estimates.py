"""What a compiled training takes: memory, time, and where the time goes.

A compiler for TPUs estimates the cycles of each operation; GPUs' say nothing, so a
roofline stands in: operations over the peak, or bytes over the bandwidth of the memory,
whichever takes longer. Neither was measured on a chip.
"""

import sys
from typing import NamedTuple

from ddpm_jax.compiled import breakdown, programs, topologies
from ddpm_jax.compiled.programs import Compiled
from ddpm_jax.compiled.topologies import Topology
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.plan import Plan, cannot_share, table, with_lighter

NUM_SAMPLES = 50_000  # what FID takes
FEW = 8  # images: below, the compiler makes a batch of strips of them
LEFT_OUT = {
    "tpu": """\
Times are the compiler's estimate, not measured. It leaves out waiting for memory and
for the host, background copies and custom kernels, and does not see that bfloat16
halves what is moved. Convolutions and matrix products are 6 to 14 % above the time of
the peak; the rest is rougher.""",
    "cuda": """\
Times are a bound, not an estimate: nothing waits, products reach the peak of bfloat16
whatever their type, and what is read twice comes from memory twice.""",
}


class Times(NamedTuple):
    """Seconds of a program on each device.

    Attributes:
      operations: what devices compute.
      exchange: what they tell each other, at best.
    """

    operations: float
    exchange: float

    @property
    def total(self) -> float:
        """One after the other."""
        return self.operations + self.exchange


def describe(experiment: Experiment, name: str, by_module: bool = False) -> str:
    """Compiles a training for a topology, and returns what it takes as a table.

    Args:
      experiment: what is trained.
      name: of the topology, as `topologies.parse` reads it.
      by_module: whether to tell where the time of a step goes.

    Raises:
      ConfigError: one line that says what to mend, or what to install.
    """
    topology = topologies.parse(name)
    needed = topologies.missing(topology) or cannot_share(
        experiment.dataset.batch_size,
        topology.num_devices,
        experiment.training.num_microbatches,
    )
    if needed:
        raise ConfigError(needed)
    plan, lighter = with_lighter(experiment, topology.num_devices, topology.chip.memory)
    made = programs.ask(
        experiment.config, topology, lambda said: print(said, file=sys.stderr)
    )
    said = report(topology, plan, made["training"], made["sampling"], lighter)
    if by_module and made["training"].refused is None:
        said = f"{said}\n\n{breakdown.by_module(made['training'])}"
    return said


def times(topology: Topology, made: Compiled, flops: float) -> Times:
    """Estimates how long a program takes.

    Args:
      topology: what it was compiled for.
      made: the program.
      flops: its operations on each device.
    """
    chip = topology.chip
    if chip.clock:
        operations = made.total_cycles / chip.clock
    else:
        operations = max(flops / chip.flops, made.traffic / chip.bandwidth)
    chips = topology.num_devices // chip.devices
    if chips == 1:
        return Times(operations, 0.0)
    # Of a ring: each chip sends its share of the sum, and then of the result.
    sent = 2 * (chips - 1) / chips * sum(made.all_reduces)
    return Times(operations, sent / (topology.links * chip.link))


def report(
    topology: Topology,
    plan: Plan,
    training: Compiled,
    sampling: Compiled,
    lighter: list[tuple[str, Plan]],
) -> str:
    """Returns a table of what a training takes.

    Args:
      topology: what it was compiled for.
      plan: its counts.
      training: a step of it, as compiled.
      sampling: the sampler, as compiled.
      lighter: plans that need less memory, each behind the change of the config.
    """
    chip, share = topology.chip, plan.batch_size // plan.devices
    title = f"{topology.name}, {plan.devices} devices of {_gibi(chip.memory)}"
    rows = [(f"{title}, {share:,} images of a step on each", "", "")]
    rows += _memory(topology, plan, training, lighter)
    if training.refused is None:
        rows += _training(topology, plan, training)
    if sampling.refused is None:
        rows += _sampling(topology, plan, sampling)
    else:
        rows.append(("sampling", "", f"does NOT fit: {sampling.refused}"))
    rows += [
        ("compiling", "", ""),
        *(
            (f"  {name}", f"{made.seconds:,.0f} s", "cached" if made.cached else "")
            for name, made in (("training", training), ("sampling", sampling))
        ),
    ]
    notes = [LEFT_OUT[topology.platform]]
    if topology.platform == "tpu" and share < FEW:
        notes.append(
            f"With fewer than {FEW} images on a device, TPUs take up to 3.7 times the "
            "cycles for each pixel: a larger batch or fewer devices are faster."
        )
    if not (training.lengths_known and sampling.lengths_known):
        notes.append("A loop of unknown length counts as one turn.")
    if unsaid := training.unsaid + sampling.unsaid:
        notes.append(
            f"Too short: the compiler has no estimate of {unsaid} of the operations."
        )
    return "\n".join([table(rows), *notes])


def _memory(topology, plan, training, lighter):
    rows = [("memory, each device", "", "as compiled")]
    if training.refused is None:
        known = {k: v for k, v in training.memory.items() if v or k != "code"}
        rows += [(f"  {k}", _mega(v), "") for k, v in known.items()]
        fits = training.num_bytes <= topology.chip.memory
        verdict = (
            f"{'fits' if fits else 'does NOT fit'} into {_gibi(topology.chip.memory)}"
        )
        rows.append(("  together", _mega(training.num_bytes), verdict))
    else:
        fits = False
        rows.append(("", "", f"does NOT fit: {training.refused}"))
    for change, other in () if fits else lighter:
        ratio = other.memory["activations"] / plan.memory["activations"]
        rows.append(
            ("", "", f"--config.{change}: {ratio:.2f} of the activations, about")
        )
    return rows


def _training(topology, plan, training):
    chip, share = topology.chip, plan.batch_size // plan.devices
    flops = share * plan.step_flops
    time = times(topology, training, flops)
    reduced = sum(training.all_reduces)
    links = f"{topology.links} x {chip.link / 1e9:.0f} GB/s each way"
    how = (
        f"{training.total_cycles / 1e6:,.2f} M cycles at {chip.clock / 1e9:.2f} GHz"
        if chip.clock
        else f"{flops / 1e9:,.1f} GFLOP, {_mega(training.traffic)} read and written"
    )
    rows = [
        ("training", "", ""),
        ("  operations of a step", _seconds(time.operations), how),
    ]
    if time.exchange:
        said = f"at best: {_mega(reduced)} in {len(training.all_reduces)}, over {links}"
        rows.append(("  all-reduce", _seconds(time.exchange), said))
    of_peak = flops / time.total / chip.flops
    return [
        *rows,
        ("  images a second", f"{plan.batch_size / time.total:,.0f}", ""),
        (
            "  share of the peak",
            f"{100 * of_peak:.1f} %",
            f"of {_tera(chip.flops)} each",
        ),
        ("  in all", _hours(plan.num_steps * time.total), f"{plan.num_steps:,} steps"),
    ]


def _sampling(topology, plan, sampling):
    flops = plan.batch_size // plan.devices * plan.sample_flops
    seconds = times(topology, sampling, flops).total
    batches = -(-NUM_SAMPLES // plan.batch_size)
    calls = f"{plan.network_calls:,} calls of the network"
    size = f"{plan.batch_size:,} at a time; {_mega(sampling.num_bytes)} each device"
    return [
        ("sampling", "", f"{calls}; {sampling.host_transfers} exchanges with the host"),
        ("  a batch", _seconds(seconds), size),
        (f"  {NUM_SAMPLES:,} samples", _hours(batches * seconds), ""),
    ]


def _seconds(seconds):
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.3f} ms"


def _hours(seconds):
    return f"{seconds / 3600:,.2f} h" if seconds >= 360 else f"{seconds:,.0f} s"


def _mega(num_bytes):
    return f"{num_bytes / 1e6:,.1f} MB"


def _gibi(num_bytes):
    return f"{num_bytes / 2**30:,.0f} GiB"


def _tera(flops):
    return f"{flops / 1e12:,.1f} TFLOP/s"
