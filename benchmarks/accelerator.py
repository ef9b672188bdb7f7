"""Runs the CIFAR-10 recipe on an accelerator: correctness, speed, memory, samples.

  python benchmarks/accelerator.py --data_dir DIR --minutes 8 --out report

One command, one JSON report and one sample grid. It compares a training step with the
same step on the CPU, times steps (images/s, share of the peak), and trains for a while.
DIR holds cifar10 prepared by tensorflow-datasets as ArrayRecord.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax import config, datasets, experiment, plan
from ddpm_jax.data import images
from ddpm_jax.training import parallel
from ddpm_jax.training.state import make_train_step

# Dense peaks in TFLOP/s, from NVIDIA's data sheets: TF32 for float32 convolutions.
HOPPER = {"float32": 494, "bfloat16": 989}
PEAKS = {"H100": HOPPER, "H200": HOPPER}


def recipe(data_dir, *changes):
    """Returns the CIFAR-10 config with changes."""
    return config.load("configs/cifar.py", [f"data.data_dir={data_dir}", *changes])


def batches(made):
    """Returns a function from a step to its batch."""
    return datasets.make_batches(made, experiment.train_options(made).num_microbatches)


def correctness(data_dir):
    """Largest difference of loss and gradient norm of one step, against the CPU."""
    made = recipe(data_dir, "data.batch_size=8")
    built, batch = experiment.build(made), batches(made)(0)
    step = make_train_step(built.loss_fn, built.tx, 0.9999)
    results = {}
    for platform in ("cpu", jax.default_backend()):
        with (
            jax.default_device(jax.devices(platform)[0]),
            jax.default_matmul_precision("highest"),
        ):
            state = jax.jit(built.init)(jax.random.key(0))
            _, metrics = jax.jit(step)(state, batch, jax.random.key(1))
            results[platform] = {k: float(v) for k, v in metrics.items()}
    return results


def speed(data_dir, dtype, batch_size, steps=30):
    """Images a second, share of the peak and memory of the training step."""
    made = recipe(data_dir, f"network.dtype={dtype}", f"data.batch_size={batch_size}")
    built = experiment.build(made)
    step = parallel.parallel_step(
        make_train_step(built.loss_fn, built.tx, 0.9999, axis_name=parallel.AXIS)
    )
    state, key = jax.jit(built.init)(jax.random.key(0)), jax.random.key(1)
    batch = batches(made)(0)
    options = experiment.train_options(made)
    planned = plan.plan(built, options, batch_size, jax.device_count())
    for _ in range(3):
        state, metrics, _ = step(state, batch, key)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics, _ = step(state, batch, key)
    jax.block_until_ready((state, metrics))
    seconds = (time.perf_counter() - start) / steps
    device = jax.devices()[0]
    peak = next((v for k, v in PEAKS.items() if k in device.device_kind), None)
    memory = device.memory_stats() or {}
    flops = planned.step_flops * batch_size / seconds / 1e12 / jax.device_count()
    return {
        "dtype": dtype,
        "batch_size": batch_size,
        "images_per_sec": batch_size / seconds,
        "tflops_per_device": flops,
        "mfu": flops / peak[dtype] if peak else None,
        "peak_memory_gb": memory.get("peak_bytes_in_use", 0) / 1e9,
        "planned_memory_gb": sum(planned.memory.values()) / 1e9,
    }


def train(data_dir, minutes, out, dtype, batch_size):
    """Trains for some minutes and writes a grid of DDIM-50 samples."""
    made = recipe(
        data_dir,
        f"network.dtype={dtype}",
        f"data.batch_size={batch_size}",
        "optimizer.warmup_steps=500",
        "train.ema_decay=0.999",
    )
    made["sampler"] = {"name": "ddim", "eta": 0.0}
    made["timesteps"] = {"name": "quadratic", "num_steps": 50}
    built, batch_fn = experiment.build(made), batches(made)
    step = parallel.parallel_step(
        make_train_step(built.loss_fn, built.tx, 0.999, axis_name=parallel.AXIS)
    )
    state, key = jax.jit(built.init)(jax.random.key(0)), jax.random.key(1)
    losses, start, taken = [], time.perf_counter(), 0
    bar = tqdm(total=minutes, unit="min", disable=None)
    while (elapsed := (time.perf_counter() - start) / 60) < minutes:
        state, metrics, _ = step(state, batch_fn(taken), key)
        taken += 1
        if taken % 100 == 0:
            losses.append(float(metrics["loss"]))  # of one batch: noisy
            bar.update(elapsed - bar.n)
    sample_fn = parallel.parallel_map(built.sample_fn, 64)
    began = time.perf_counter()
    drawn = sample_fn(jax.device_get(state.ema_params), experiment.sample_keys(0, 64))
    images.save_png(out / "samples.png", images.grid(images.to_uint8(drawn)))
    return {
        "steps": taken,
        "images": taken * batch_size,
        "loss": [
            float(np.mean(part)) for part in np.array_split(losses, 8) if len(part)
        ],
        "sampling_seconds_with_compilation": time.perf_counter() - began,
    }


def main():
    """Writes report.json and samples.png."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--batch_sizes", default="128,512,1024")
    args = parser.parse_args()
    report = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    report["correctness"] = correctness(args.data_dir)
    report["speed"] = [
        speed(args.data_dir, dtype, int(batch_size))
        for dtype in ("float32", "bfloat16")
        for batch_size in args.batch_sizes.split(",")
    ]
    report["training"] = train(args.data_dir, args.minutes, args.out, "bfloat16", 256)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
