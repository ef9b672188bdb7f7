"""Reports how the CIFAR-10 recipe runs on an accelerator, through the real training.

  python benchmarks/accelerator.py --data_dir DIR --out report

One command, without a network: report.json (written anew after each part, so that what
is broken off leaves what it had), a table, and a grid of samples. DIR holds
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
import itertools
import json
import subprocess
import sys
from pathlib import Path

from ddpm_jax.cli import command as cli
from ddpm_jax.experiment import config

PARTS = Path(__file__).with_name("accelerator_parts.py")
COMPILING = 1200  # seconds, at most, beside those of a part
FOREVER = 10**9


def part(name, out, settings, *given, seconds=0):
    """Runs a part in a process of its own, and returns what it reports."""
    print(f"-- {name} {' '.join(map(str, given))}", flush=True)
    result = out / "part.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, PARTS, result]
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
    settings = config.read_config(args.config, [*given, *args.overrides])
    settings["network"] |= {"dtype": dtype}
    settings["data"] |= {"batch_size": batch_size}
    settings["train"] |= dict(num_steps=FOREVER, save_every=FOREVER, sample_every=0)
    settings["train"] |= dict(log_every=20)
    return settings, args.out / name


def make(args):
    """Yields the report after each part that it has grown by."""

    def report_on(name, settings, *given, seconds=0):
        return part(name, args.out, settings, *given, seconds=seconds)

    dtypes = args.dtypes
    settings, _ = changed(args, "float32", 8, "")
    report = report_on("describe", settings)
    yield report
    report["agreement_with_cpu"] = report_on("agree", settings)
    yield report
    report["training"], report["diffusers_compiled"] = [], []
    for dtype, size in itertools.product(dtypes, args.batch_sizes):
        settings, folder = changed(args, dtype, size, f"{dtype}_{size}")
        head = {"dtype": dtype, "batch_size": size}
        seconds = args.seconds
        found = report_on("run", settings, folder, seconds, seconds=seconds)
        report["training"].append({**head, **found, "workdir": str(folder)})
        yield report
        device = args.torch_device
        found = report_on("compare", settings, seconds, device, seconds=seconds)
        report["diffusers_compiled"].append({**head, **found})
        yield report
    seconds = 60 * args.minutes
    settings, folder = changed(args, dtypes[-1], args.batch_sizes[0], "long")
    settings["optimizer"] |= {"warmup_steps": 500}
    settings["train"] |= {"ema_decay": 0.999, "log_every": 100}
    report["longer"] = report_on("run", settings, folder, seconds, seconds=seconds)
    yield report
    picture = args.out / "samples.png"
    command = [sys.executable, "-m", "ddpm_jax.sample", "--workdir", str(folder)]
    command += ["--num", "64", "--sampler", "ddim", "--steps", "50"]
    ended = subprocess.run([*command, "--out", str(picture)])
    report["samples"] = str(picture) if ended.returncode == 0 else "none: see above"
    yield report


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
    args = cli.parse(parser)
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.iterdir()):
        raise SystemExit(f"error: {args.out} is not empty: give another --out")
    for report in make(args):
        (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    print(f"all of it is in {args.out / 'report.json'}")


if __name__ == "__main__":
    main()
