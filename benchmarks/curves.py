"""Draws how a run went: its loss, that of each quarter of the times, its pictures.

  python benchmarks/curves.py runs/mine --out curves.png

Of docs/howto/own_images.md, with --steps 100 300 1000 2500.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

COLOURS = "#56B4E9", "#009E73", "#E69F00", "#D55E00"
QUARTERS = "least noise", "second quarter", "third quarter", "most noise"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    parser.add_argument("--steps", type=int, nargs="+", help="default: four of them")
    args = parser.parse_args()

    lines = (args.workdir / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    steps = [record["step"] for record in records]
    pictures = {
        int(path.stem.removeprefix("step_")): path
        for path in (args.workdir / "samples").glob("step_*.png")
    }
    there = sorted(pictures)
    spread = np.geomspace(1, max(len(there), 1), 4).round().astype(int) - 1
    chosen = args.steps or sorted({there[i] for i in spread if there})

    figure = plt.figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    panel = left.subplots()
    for i, (name, colour) in enumerate(zip(QUARTERS, COLOURS, strict=True)):
        key = f"loss_by_t/q{i}"
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            panel.loglog(*zip(*points, strict=True), color=colour, lw=1, label=name)
    losses = [record["loss"] for record in records]
    panel.loglog(steps, losses, color="black", lw=1.6, label="all times")
    panel.set(xlabel="step", ylabel="loss")
    panel.legend(fontsize=7, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    for panel, step in zip(
        np.ravel(right.subplots(2, -(-len(chosen) // 2), squeeze=False)),
        chosen,
        strict=False,
    ):
        panel.imshow(Image.open(pictures[step]), cmap="grey", interpolation="nearest")
        panel.set_title(f"step {step:,}", fontsize=8)
        panel.set_axis_off()
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
