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
from ddpm_jax.compiled.peaks import peak_flops
from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.experiment import build, plan
from ddpm_jax.training.ema import Average, constant
from ddpm_jax.training.step import make_train_step


def describe(settings):
    """The devices."""
    kind = jax.devices()[0].device_kind
    peaks = {dtype: peak_flops(kind, dtype) for dtype in ("float32", "bfloat16")}
    return {
        "device": kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "peak_tflops": {k: peak and peak / 1e12 for k, peak in peaks.items()},
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
            results[platform] = {k: float(metrics[k]) for k in ("loss", "grad_norm")}
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
    peak = peak_flops(jax.devices()[0].device_kind, dtype)
    memory = jax.local_devices()[0].memory_stats() or {}
    found = {
        "dtype": dtype,
        "batch_size": batch_size,
        "images_per_sec": speed,
        "tflops_per_device": flops,
        "mfu": peak and flops * 1e12 / peak,
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
