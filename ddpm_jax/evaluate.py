"""Scores a trained model on images.

  python -m ddpm_jax.evaluate --workdir runs/digits --metrics bpd,ode_bpd --num 100

  bpd      bits per dimension by the variational bound over all T steps, clipped
           predictions, one draw of noise for each time
  ode_bpd  bits per dimension by the probability-flow ODE, of dequantised images

Prints a table and writes evaluation.json, with the whole protocol beside each number.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import cli, models
from ddpm_jax import experiment as experiments
from ddpm_jax.config import ConfigError
from ddpm_jax.data import images
from ddpm_jax.data.source import gather
from ddpm_jax.diffusion import bound, denoisers, likelihood, timesteps
from ddpm_jax.experiment import Experiment
from ddpm_jax.naming import unknown
from ddpm_jax.training import parallel


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    models.add_arguments(parser)
    add = parser.add_argument
    add("--metrics", default="bpd", help="bpd, ode_bpd, or both as in bpd,ode_bpd")
    add("--num", type=int, default=256, help="how many images (default: 256)")
    add("--split", default="test", help="of the data set (default: test)")
    add("--seed", type=int, default=0, help="of the images and the noise (default: 0)")
    add("--variance", help="of bpd: fixed_small, fixed_large or learned_range")
    add("--tolerance", type=float, default=1e-5, help="of ode_bpd (default: 1e-5)")
    add("--batch_size", type=int, default=64, help="images at a time (default: 64)")
    add(
        "--out",
        metavar="FILE.json",
        help="default: evaluation.json in --workdir or here",
    )
    return parser


def bpd(run: Experiment, params, data, args, variance: str) -> dict[str, Any]:
    """Scores by the variational bound."""
    num_steps = run.schedule.num_steps
    bound_fn = bound.make_bound(
        run.network.apply,
        run.schedule,
        timesteps.trailing(num_steps, num_steps),
        run.predicts,
        variance,
        lambda denoiser: denoisers.clip(denoiser, run.schedule),
    )
    scored = parallel.parallel_map(bound_fn, args.batch_size, "bpd")(params, *data)
    steps = np.asarray(scored.steps, np.float64)
    return {
        **_summary(scored.total()),
        "prior": float(np.mean(scored.prior)),
        "decoder": float(np.mean(steps[:, -1])),
        "variance": variance,
        "clip": True,
        "num_steps": num_steps,
    }


def ode_bpd(run: Experiment, params, data, args) -> dict[str, Any]:
    """Scores by the probability-flow ODE."""
    likelihood_fn = likelihood.make_likelihood(
        run.network.apply,
        run.schedule,
        run.predicts,
        rtol=args.tolerance,
        atol=args.tolerance,
    )

    def dequantized(params, keys, pictures, labels):
        spread, probes = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = likelihood.dequantize(spread, pictures)
        return likelihood_fn(params, probes, x, labels)

    scored = parallel.parallel_map(dequantized, args.batch_size, "ode_bpd")(
        params, *data
    )
    bits = likelihood.bits_per_dimension(scored.log_density, run.image_shape)
    return {
        **_summary(bits),
        "tolerance": args.tolerance,
        "solver_steps": float(np.mean(scored.num_steps)),
        "dequantisation": "uniform",
    }


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Scores as the arguments say.

    Returns:
      For each metric its "mean", "standard_error" and protocol.

    Raises:
      ConfigError: for whatever the user can mend.
    """
    metrics = dict.fromkeys(args.metrics.split(","))
    for name in metrics:
        if name not in ("bpd", "ode_bpd"):
            raise ConfigError(unknown("metric", name, ("bpd", "ode_bpd")))
    if args.num < 2 or args.batch_size < 1:
        raise ConfigError("--num must be at least 2, and --batch_size at least 1")
    if not 0 < args.tolerance < 1:
        raise ConfigError("--tolerance must lie between 0 and 1")
    model = models.from_args(args)
    run = experiments.build(model.config)
    data = _read_images(run, model.config, args)
    params = model.load_params(run)
    protocol = {
        "model": args.workdir or args.pretrained,
        "weights": (args.weights or "ema") if args.workdir else "pretrained",
        "data": {**model.config["data"], "split": args.split},
        "num": len(data[0]),
        "seed": args.seed,
    }
    scores = {}
    for name in metrics:
        try:
            if name == "bpd":
                variance = args.variance or _variance(model.config)
                score = bpd(run, params, data, args, variance)
            else:
                score = ode_bpd(run, params, data, args)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        scores[name] = score | protocol
    return scores


def _read_images(run, config, args):
    """A key for each image, the images in [-1, 1], and their labels or None."""
    if "name" not in config.get("data", {}):
        raise ConfigError(
            "this model does not say of what data: give --config.data.name and what it "
            "needs, as in --config.data.name=tfds --config.data.dataset=cifar10"
        )
    section = {**config["data"]}
    if section["name"] in ("digits", "tfds"):
        section["split"] = args.split
    source = experiments.open_source({**config, "data": section})
    chosen = np.random.default_rng(args.seed).permutation(len(source))[: args.num]
    pictures, labels = gather(source, np.sort(chosen))
    keys = experiments.sample_keys(args.seed, len(pictures))
    return keys, images.to_float(pictures), labels if run.num_classes else None


def _variance(config):
    """The variance that the model is sampled with, or else the nearest."""
    if config["network"].get("learned_variance"):
        return "learned_range"
    return config["sampler"].get("variance", "fixed_small")


def _summary(values):
    return {
        "mean": float(np.mean(values)),
        "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
    }


def main(args: argparse.Namespace) -> None:
    """Scores, prints and writes."""
    folder = args.workdir or "."
    out = Path(args.out or Path(folder, "evaluation.json"))
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: give the name of a file")
    scores = evaluate(args)
    for name, score in scores.items():
        print(f"{name:8} {score['mean']:.4f} ± {score['standard_error']:.4f} bits/dim")
    if jax.process_index() == 0:
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(json.dumps(scores, indent=2) + "\n")
        partial.replace(out)
    print(f"of {score['num']} images; the protocol is in {out}")


if __name__ == "__main__":
    cli.run(main, cli.parse(add_arguments(cli.parser(__doc__))))
