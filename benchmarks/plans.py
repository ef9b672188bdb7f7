"""Writes what recipes draw with and cost into docs/results.md, as their plans say.

  python benchmarks/plans.py            # all recipes, a minute of a CPU core
  python benchmarks/plans.py --print configs/cifar_jit.py:S2

Nothing is measured: operations are counted in the traced program, see docs/planning.md.
"""

import argparse
import re
import runpy
from pathlib import Path
from typing import Any

from ddpm_jax.experiment import config as configs
from ddpm_jax.experiment import plan as plans
from ddpm_jax.experiment.build import build

RESULTS = Path("docs/results.md")
BLOCK = re.compile(r"(?<=<!-- benchmarks/plans.py -->\n).*?(?=<!-- end -->)", re.S)
COLUMNS = (
    "recipe",
    "average",
    "guidance",
    "sampler",
    "calls",
    "parameters",
    "an image and step",
    "a sample",
    "steps × images",
    "training",
)


def recipes(folder: str = "configs") -> list[str]:
    """Returns the recipes of a folder, with each of their variants, in order."""
    specs = []
    for path in sorted(Path(folder).glob("*.py")):
        variants = runpy.run_path(str(path)).get("VARIANTS")
        specs += [f"{path}:{name}" for name in variants] if variants else [str(path)]
    return specs


def name(spec: str) -> str:
    """Returns a recipe's name in the tables."""
    return f"`{spec.removeprefix('configs/')}`"


def drawn(config: dict[str, Any]) -> list[str]:
    """Returns the cells that say with what a recipe draws."""
    train, network, denoiser = (config[key] for key in ("train", "network", "denoiser"))
    averages = [train["ema_decay"], *train.get("averages", {}).values()]
    guided = "–"
    if network.get("label_dropout"):
        interval = denoiser.get("guidance_interval")
        within = f", σ/α in {interval[0]:g} … {interval[1]:g}" if interval else ""
        guided = f"{denoiser['guidance_scale']:g}{within}"
    return [
        ", ".join(_average(each) for each in averages if each is not None),
        guided,
        f"{config['sampler']['name']}, {config['timesteps']['name']}",
    ]


def _average(given):
    if isinstance(given, float):
        return f"{given:g}"
    if given["name"] == "constant":
        return f"{given['decay']:g}"
    return f"half-life {given['images']:,} images"


def length(config: dict[str, Any]) -> tuple[int, int]:
    """Returns the steps of a training, and the images of each."""
    return config["train"]["num_steps"], config["data"]["batch_size"]


def row(spec: str) -> str:
    """Returns the line of a recipe."""
    config = configs.read_config(spec)
    plan, (steps, size) = plans.plan(build(config), 1), length(config)
    cells = [
        name(spec),
        *drawn(config),
        f"{plan.network_calls:,}",
        f"{plan.num_params:,}",
        plans.flop(plan.step_flops),
        plans.flop(plan.sample_flops),
        f"{steps:,} × {size:,}",
        plans.flop(plan.step_flops * steps * size),
    ]
    return f"| {' | '.join(cells)} |"


def table(specs: list[str]) -> str:
    """Returns the lines of some recipes under their head."""
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *map(row, specs)]) + "\n"


def main():
    """Writes the table, or prints that of some recipes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", nargs="+", metavar="RECIPE")
    args = parser.parse_args()
    if args.print:
        print(table(args.print), end="")
        return
    text = RESULTS.read_text()
    assert BLOCK.search(text), f"{RESULTS} has no place for it"
    made = table(recipes())
    RESULTS.write_text(BLOCK.sub(lambda _: made, text))


if __name__ == "__main__":
    main()
