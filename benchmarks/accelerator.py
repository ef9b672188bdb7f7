"""Reports how the CIFAR-10 recipe runs on an accelerator, through the real training.

  python benchmarks/accelerator.py --data_dir DIR --out report

One command, without a network: report.json, a table, and a grid of samples. DIR holds
cifar10 prepared by tensorflow-datasets as ArrayRecord. Each part is a process of its
own, and what fails or is missing is said in its place:

  a training step beside the same one on the CPU;
  trainings by `train.train` itself (prefetch, meter, votes, checkpoints) in float32
  and bfloat16: images a second as its own log has them, share of the peak, memory;
  diffusers' UNet2DModel of the same network in compiled PyTorch, where it is there;
  a longer training, and 64 samples of it by 50 steps of DDIM.

Any value of the config can be changed; a CPU takes it in minutes, too, when tiny:

  python benchmarks/accelerator.py --config configs/digits.py --batch_sizes 16 \\
    --seconds 5 --minutes 0.1 --config.network.channels=8 --config.network.num_groups=4
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import compiled_diffusers
import jax

from ddpm_jax import cli, config, datasets, experiment, plan, train
from ddpm_jax.config import ConfigError
from ddpm_jax.training.state import make_train_step

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
COMPILING = 1200  # seconds, at most, beside those of a part
FOREVER = 10**9


# Parts: settings -> what to report. Each is run by a process of its own.


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
    built = experiment.build(settings)
    batch = datasets.make_batches(settings)(0)
    step = make_train_step(built.loss_fn, built.tx, 0.9999)
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
    train.train(settings, workdir)
    ended.set()
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    speeds = [line["images_per_sec"] for line in lines if "images_per_sec" in line]
    if not speeds:
        return {"left_out": "it was too slow for a record"}
    batch_size = settings["data"]["batch_size"]
    devices = jax.device_count()
    built, options = experiment.build(settings), experiment.train_options(settings)
    planned = plan.plan(built, options, batch_size, devices)
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


# The report.


def part(name, out, settings, *given, seconds=0):
    """Runs a part in a process of its own, and returns what it reports."""
    print(f"-- {name} {' '.join(map(str, given))}", flush=True)
    result = out / "part.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", str(result)]
    asked = json.dumps([name, settings, *map(_plain, given)])
    try:
        ended = subprocess.run(
            command, input=asked, text=True, timeout=COMPILING + seconds
        )
    except subprocess.TimeoutExpired:
        return {"left_out": f"it did not end within {COMPILING + seconds:.0f} seconds"}
    if not result.exists():
        return {"left_out": f"it failed with code {ended.returncode}: see above"}
    found = json.loads(result.read_text())
    result.unlink()
    return found


def _numbers(text):
    return [int(number) for number in text.split(",")]


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def changed(args, dtype, batch_size, name):
    """The settings of a training without an end."""
    given = [f"data.data_dir={args.data_dir}"] if args.data_dir else []
    settings = config.load(args.config, [*given, *args.overrides])
    settings["network"] |= {"dtype": dtype}
    settings["data"] |= {"batch_size": batch_size}
    settings["train"] |= dict(num_steps=FOREVER, save_every=FOREVER, sample_every=0)
    settings["train"] |= dict(log_every=20)
    return settings, args.out / name


def make(args):
    """Returns the report."""
    sizes, dtypes = args.batch_sizes, args.dtypes
    settings, _ = changed(args, "float32", 8, "")
    report = part("describe", args.out, settings)
    report["agreement_with_cpu"] = part("agree", args.out, settings)
    report["training"], report["diffusers_compiled"] = [], []
    for dtype in dtypes:
        for size in sizes:
            settings, folder = changed(args, dtype, size, f"{dtype}_{size}")
            given = folder, args.seconds
            found = part("run", args.out, settings, *given, seconds=args.seconds)
            report["training"].append(
                {"dtype": dtype, "batch_size": size} | found | {"workdir": str(folder)}
            )
            found = part(
                "compare",
                args.out,
                settings,
                args.seconds,
                args.torch_device,
                seconds=args.seconds,
            )
            report["diffusers_compiled"].append(
                {"dtype": dtype, "batch_size": size} | found
            )
    seconds = 60 * args.minutes
    settings, folder = changed(args, dtypes[-1], sizes[0], "long")
    settings["optimizer"] |= {"warmup_steps": 500}
    settings["train"] |= {"ema_decay": 0.999, "log_every": 100}
    report["longer"] = part("run", args.out, settings, folder, seconds, seconds=seconds)
    picture = args.out / "samples.png"
    command = [sys.executable, "-m", "ddpm_jax.sample", "--workdir", str(folder)]
    command += ["--num", "64", "--sampler", "ddim", "--steps", "50"]
    ended = subprocess.run([*command, "--out", str(picture)])
    report["samples"] = str(picture) if ended.returncode == 0 else "none: see above"
    return report


def table(report):
    """The speeds, ours beside diffusers'."""
    lines = [f"{report.get('device')}, {report.get('devices')} of it"]
    head = ("dtype", "batch", "images/s", "MFU", "GB", "diffusers compiled")
    lines.append("{:<10}{:>6}{:>11}{:>7}{:>7}  {}".format(*head))
    both = zip(report["training"], report["diffusers_compiled"], strict=True)
    for ours, theirs in both:
        cells = [ours["dtype"], ours["batch_size"]]
        if "left_out" in ours:
            cells += ["-", "-", "-"]
        else:
            mfu, memory = ours["mfu"], ours.get("peak_memory_gb")
            cells.append(f"{ours['images_per_sec']:.1f}")
            cells.append("-" if mfu is None else f"{mfu:.1%}")
            cells.append("-" if memory is None else f"{memory:.1f}")
        cells.append(theirs.get("left_out") or f"{theirs['images_per_sec']:.1f}")
        lines.append("{:<10}{:>6}{:>11}{:>7}{:>7}  {}".format(*cells))
    return "\n".join(lines)


def main():
    """Writes report.json and samples.png, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/cifar.py")
    add("--data_dir", metavar="DIR", help="of prepared data sets")
    add("--out", type=Path, default=Path("report"))
    add("--batch_sizes", type=_numbers, default=[128, 512, 1024], help="128,512,1024")
    add("--dtypes", type=lambda text: text.split(","), default=["float32", "bfloat16"])
    add("--seconds", type=float, default=40, help="of each training (default: 40)")
    add("--minutes", type=float, default=8, help="of the longer one (default: 8)")
    add("--torch_device", default="cuda", help="of diffusers (default: cuda)")
    add("--part", type=Path, help=argparse.SUPPRESS)
    args = cli.parse(parser)
    if args.part:
        name, *given = json.load(sys.stdin)
        try:
            found = PARTS[name](*given)
        except (ConfigError, OSError, jax.errors.JaxRuntimeError) as error:
            found = {"left_out": cli.one_line(error)[:300]}
        args.part.write_text(json.dumps(found))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.iterdir()):
        raise SystemExit(f"error: {args.out} is not empty: give another --out")
    report = make(args)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    print(f"all of it is in {args.out / 'report.json'}")


if __name__ == "__main__":
    main()
