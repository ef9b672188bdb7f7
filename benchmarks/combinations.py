"""Trains the digits with each of some losses, and scores what they draw.

  python benchmarks/combinations.py --out runs/combinations

What is predicted, with which weight, at which noise levels: the network, the number of
steps, the data and the scores are the same for all, and each is trained from three
seeds. Prints a table of means, with the largest difference between seeds behind them.
The same command goes on where it was stopped. `--jobs 2` trains two at a time.
"""

import argparse
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ddpm_jax.evaluation import report

EDM = ("schedule={'name': 'log_snr_linear', 'num_steps': 1000}",)
COMBINATIONS = {
    "eps": ["loss.predicts=eps"],
    "x_0": ["loss.predicts=x_0"],
    "v": ["loss.predicts=v"],
    "v, min-SNR": ["loss.predicts=v", "loss.weighting=min_snr"],
    "v, sigmoid": ["loss.predicts=v", "loss.weighting.name=sigmoid"],
    "v, min-SNR, uniform in log-SNR": [
        "loss.predicts=v",
        "loss.weighting=min_snr",
        "loss.density=uniform_log_snr",
    ],
    "flow, logit-normal": [
        *EDM,
        "loss.predicts=flow",
        "loss.density=logit_normal",
        "network.convention=flow",
    ],
    "EDM": [
        *EDM,
        "loss.predicts=x_0",
        "loss.density=edm",
        "loss.weighting=edm",
        "network.convention=edm",
    ],
}
SAMPLERS = ("ddim:50", "dpmpp_2m@log_snr_uniform:15")
METRICS = {"fd": "{:.2f}", "accuracy": "{:.3f}"}


def scores(folder: Path, overrides, num: int) -> dict[tuple[str, str], float]:
    """Trains and scores one; returns its values by sampler and metric."""
    changes = [f"--config.{change}" for change in overrides]
    given = ["--config", "configs/digits.py", "--workdir", str(folder), *changes]
    _run(folder, "train", given)
    sweep = ["--metrics", ",".join(METRICS), "--num", str(num), "--sweep", *SAMPLERS]
    _run(folder, "evaluate", ["--workdir", str(folder), *sweep])
    found = report.load(folder / "evaluation.json")
    return {(score.subject, score.metric): score.value for score in found}


def _run(folder, main, given):
    command = [sys.executable, "-m", f"ddpm_jax.{main}", *given]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{folder}: {result.stdout}{result.stderr}")


def table(found: dict[str, list[dict]]) -> str:
    """Returns the values of all as lines of Markdown."""
    columns = [*itertools.product(SAMPLERS, METRICS)]
    lines = ["| | " + " | ".join(f"{m}, {sampler}" for sampler, m in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, of_seeds in found.items():
        cells = []
        for column in columns:
            values = np.array([each[column] for each in of_seeds])
            told = METRICS[column[1]].format
            cells.append(f"{told(values.mean())} ± {told(np.ptp(values))}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args):
    """Trains, scores and prints."""
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {}
        for seed in range(args.seeds):  # all with one seed first
            for name in args.only or COMBINATIONS:
                folder = args.out / name.replace(" ", "_").replace(",", "") / str(seed)
                changes = [*COMBINATIONS[name], f"seed={seed}", "train.sample_every=0"]
                changes.append(f"train.num_steps={args.num_steps}")
                changes.append("data.batch_size=64")
                job = pool.submit(scores, folder, changes, args.num)
                futures.setdefault(name, []).append(job)
        found = {name: [f.result() for f in each] for name, each in futures.items()}
    print(table(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/combinations"), metavar="DIR")
    add("--num_steps", type=int, default=2500, help="of each training (2500)")
    add("--num", type=int, default=1000, help="samples to score (1000)")
    add("--seeds", type=int, default=3, help="of each combination (3)")
    add("--jobs", type=int, default=1, help="trainings at a time (1)")
    add("--only", nargs="+", choices=COMBINATIONS, help="these alone")
    main(parser.parse_args())
