"""Asks the compiler for TPUs what whole recipes take, as rows of benchmarks/RESULTS.md.

  pip install -e '.[plan-tpu]' && python benchmarks/compiled.py --topology v5e:2x2

No TPU is needed, but many minutes for each large recipe the first time; what was
compiled before is kept. All rows are of one topology; `--set data.batch_size=128`
changes a value of every recipe.
"""

import argparse
import sys
from importlib import metadata

from ddpm_jax.compiled import estimates, programs, topologies
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config
from ddpm_jax.experiment import plan as plans
from ddpm_jax.experiment.build import build

RECIPES = (
    "configs/cifar.py",
    "configs/celebahq256.py",
    "configs/imagenet64.py:conditional",
)
COLUMNS = (
    "recipe",
    "topology",
    "images each",
    "M cycles",
    "a step, ms",
    "images/s",
    "share of the peak",
    "memory each, MB",
    "code, MB",
    "all-reduces",
    "compiled in, s",
    "50,000 samples, h",
)


def row(recipe: str, name: str, changes: list[str]) -> list[str]:
    """Returns the row of a recipe."""
    topology = topologies.parse(name)
    experiment = build(config.read_config(recipe, changes))
    plan, _ = plans.with_lighter(experiment, topology.num_devices)
    share = plan.batch_size // plan.devices
    cells = [recipe, name, f"{share:,}"]
    try:
        said = programs.ask(
            experiment.config, topology, lambda line: print(line, file=sys.stderr)
        )
    except ConfigError as error:
        return [*cells, str(error)]
    step, sampler = said["training"], said["sampling"]
    if step.refused:
        return [*cells, f"does not fit: {step.refused}"]
    time = estimates.times(topology, step, share * plan.step_flops)
    calls = estimates.times(topology, sampler, share * plan.sample_flops)
    batches = -(-estimates.NUM_SAMPLES // plan.batch_size)
    of_peak = share * plan.step_flops / time.total / topology.chip.flops
    reduced = sum(step.all_reduces) / 1e6
    unsaid = f" and {step.unsaid} without" if step.unsaid else ""
    cycles = f"{step.total_cycles / 1e6:,.2f}{unsaid}" if step.cycles else ""
    code = step.memory["code"]
    return [
        *cells,
        cycles,
        f"{1000 * time.total:,.2f}",
        f"{plan.batch_size / time.total:,.0f}",
        f"{100 * of_peak:.1f} %",
        f"{step.num_bytes / 1e6:,.0f}",
        f"{code / 1e6:,.1f}" if code else "",
        f"{len(step.all_reduces)}, {reduced:,.1f} MB",
        f"{step.seconds:,.0f}",
        f"{batches * calls.total / 3600:,.2f}",
    ]


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--topology", default="v5e:2x2", metavar="NAME")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )
    args = parser.parse_args()
    if needed := topologies.missing(topologies.parse(args.topology)):
        sys.exit(needed)
    plugin, _ = topologies.PLUGINS[topologies.parse(args.topology).platform]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", plugin))
    print(f"{versions}, as the compiler estimates; not measured\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for recipe in args.recipes:
        print(f"| {' | '.join(row(recipe, args.topology, args.set))} |", flush=True)


if __name__ == "__main__":
    main()
