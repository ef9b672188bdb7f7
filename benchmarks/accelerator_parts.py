"""The parts of accelerator.py's report, each run by a process of its own.

A part takes settings, and returns what to report.
"""

import json
import os
import signal
import statistics
import sys
import threading
from pathlib import Path

import compiled_diffusers
import jax

from ddpm_jax import train
from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.experiment import build, plan
from ddpm_jax.training.ema import Average, constant
from ddpm_jax.training.step import make_train_step

# Dense peaks in TFLOP/s by the makers' data sheets, the more special names first. A GPU
# multiplies float32 in TF32, a TPU in bfloat16, unless it is told otherwise.
PEAKS = {
    "B200": {"float32": 1125, "bfloat16": 2250},
    "H200": {"float32": 494, "bfloat16": 989},
    "H100 PCIe": {"float32": 378, "bfloat16": 756},
    "H100 NVL": {"float32": 417, "bfloat16": 835},
    "H100": {"float32": 494, "bfloat16": 989},
    "A100": {"float32": 156, "bfloat16": 312},
    "L40S": {"float32": 183, "bfloat16": 362},
    "L4": {"float32": 60, "bfloat16": 121},
    "TPU v6 lite": {"float32": 918, "bfloat16": 918},
    "TPU v5 lite": {"float32": 197, "bfloat16": 197},
    "TPU v5": {"float32": 459, "bfloat16": 459},
    "TPU v4": {"float32": 275, "bfloat16": 275},
}


def describe(settings):
    """The devices."""
    kind = jax.devices()[0].device_kind
    peak = next((value for name, value in PEAKS.items() if name in kind), None)
    return {
        "device": kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "peak_tflops": peak or "not in the table: no share of the peak is told",
    }


def agree(settings):
    """Loss and gradient norm of a step here and on the CPU, in full precision."""
    here = jax.default_backend()
    if here == "cpu":
        return {"left_out": "there is only the CPU"}
    built = build.build(settings)
    batch = built.dataset.feed().batch_fn(0)
    step = make_train_step(built.loss_fn, built.tx, {"ema": Average(constant)})
    results = {}
    for platform in ("cpu", here):
        with (
            jax.default_device(jax.devices(platform)[0]),
            jax.default_matmul_precision("highest"),
        ):
            state = jax.jit(built.init)(jax.random.key(0))
            _, metrics = jax.jit(step)(state, batch, jax.random.key(1))
            results[platform] = {k: float(v) for k, v in metrics.items()}
    apart = {k: abs(results[here][k] / v - 1) for k, v in results["cpu"].items()}
    return {**results, "relative_difference": apart}


def run(settings, workdir, seconds):
    """Trains for so many seconds after the first record, as a signal would stop it."""
    records = Path(workdir) / "metrics.jsonl"
    ended = threading.Event()

    def stop():
        while not records.exists() and not ended.wait(0.1):
            pass
        if not ended.wait(seconds):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    built = build.build(settings)
    train.train(built, workdir)
    ended.set()
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    speeds = [line["images_per_sec"] for line in lines if "images_per_sec" in line]
    if not speeds:
        return {"left_out": "it was too slow for a record"}
    batch_size = built.dataset.batch_size
    devices = jax.device_count()
    planned = plan.plan(built, devices)
    speed = statistics.median(speeds[1:] or speeds)
    flops = planned.step_flops * speed / devices / 1e12
    dtype = settings["network"].get("dtype", "float32")
    peak = describe(settings)["peak_tflops"]
    memory = jax.local_devices()[0].memory_stats() or {}
    found = {
        "dtype": dtype,
        "batch_size": batch_size,
        "images_per_sec": speed,
        "tflops_per_device": flops,
        "mfu": flops / peak[dtype] if isinstance(peak, dict) else None,
        "parameters": planned.num_params,
        "planned_memory_gb": sum(planned.memory.values()) / 1e9,
        "steps": lines[-1]["step"],
        "losses": [line["loss"] for line in lines[:: max(len(lines) // 8, 1)]],
        "last_record": lines[-1],
    }
    if "peak_bytes_in_use" in memory:
        found["peak_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
    return found


PARTS = {
    "describe": describe,
    "agree": agree,
    "run": run,
    "compare": compiled_diffusers.run,
}


def main():
    """From a list on standard input, the name and what it takes, to a file."""
    name, *given = json.load(sys.stdin)
    try:
        found = PARTS[name](*given)
    except (ConfigError, OSError, jax.errors.JaxRuntimeError) as error:
        found = {"left_out": one_line(error)[:300]}
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
