"""Scores a trained model, or images that are there already.

  python -m ddpm_jax.evaluate --workdir runs/cifar --metrics fid,is,kid,pr --num 50000
  python -m ddpm_jax.evaluate --workdir runs/digits --metrics fd,accuracy --num 2048 \\
    --sweep ddim:10,20,50 ddpm:1000 data:test
  python -m ddpm_jax.evaluate --images samples/ --reference cifar_train.npz

Of samples, against real images:

  fid sfid is   of the Inception network
  fd accuracy   Frechet distance of a small classifier that is trained in place, and how
                many samples it reads as the class asked for: they need no download
  kid pr dc     kernel distance, precision and recall, density and coverage, of either
  memorisation  whether samples lie nearer to the training images than test images do,
                and a picture of the nearest pairs

Of real images, under a model:

  bpd           bits per dimension by the variational bound over all T steps
  ode_bpd       bits per dimension by the probability-flow ODE, of dequantised images

Prints a table and writes evaluation.json, with the whole protocol beside each number.
The same command again goes on where it was stopped.
"""

import argparse
import itertools
from pathlib import Path

import jax

from ddpm_jax.cli import arguments, command
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError, unknown
from ddpm_jax.evaluation import image_sets, measures, plots, references, report, sweep
from ddpm_jax.evaluation.report import Score
from ddpm_jax.evaluation.results import Results
from ddpm_jax.evaluation.sweep import LIKELIHOODS, NAMES
from ddpm_jax.experiment.config import read_config
from ddpm_jax.experiment.dataset import make_dataset, open_images
from ddpm_jax.metrics.by_name import METRICS
from ddpm_jax.places import readable

NUM_SAMPLES = 50_000  # as published scores have them
NUM_IMAGES = 256


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    one = arguments.add_model(parser)
    one.add_argument("--images", metavar="PATH", help="a folder of images, or an .npz")
    arguments.add_sampling(parser)
    arguments.add_features(parser)
    add = parser.add_argument
    add("--metrics", default="fid", help="several as in fid,is,bpd (default: fid)")
    add(
        "--num",
        type=int,
        help="samples (default: 50000), or images for bpd (default: 256)",
    )
    add(
        "--sweep",
        nargs="+",
        metavar="NAME:STEPS",
        help="samplers with their steps, and real images, as in ddim:10,20,50 "
        "dpmpp_2m@karras:15 (on these timesteps) data:test; and for each of them "
        "guidance_scale:1,1.5 and weights:ema,0.1 (see --weights)",
    )
    add(
        "--reference",
        metavar="SPLIT|FILE.npz",
        help="what samples are compared with: a split of the model's data (default: "
        "train), or a file of ddpm_jax.reference, pytorch-fid or guided-diffusion",
    )
    add(
        "--held_out",
        metavar="PATH",
        help="of memorisation: images kept from training (default: the split test)",
    )
    add("--config", metavar="FILE.py", help="whose data --images are compared with")
    add("--split", help="of the data for bpd (default: test)")
    add("--tolerance", type=float, help="of ode_bpd (default: 1e-5)")
    arguments.add_batch_size(parser)
    add(
        "--out",
        metavar="FILE.json",
        help="default: evaluation.json in --workdir or here",
    )
    return parser


def evaluate(args: argparse.Namespace, out: Path) -> list[Score]:
    """Scores as the arguments say; what is in the file already is taken from it.

    Raises:
      ConfigError: for whatever the user can mend.
      OSError: if something cannot be read or written.
    """
    names = list(dict.fromkeys(name.strip() for name in args.metrics.split(",")))
    for name in names:
        if name not in NAMES:
            raise ConfigError(unknown("metric", name, NAMES))
    of_samples = [name for name in names if name not in LIKELIHOODS]
    of_model = [name for name in names if name in LIKELIHOODS]
    _check(args, of_samples, of_model)
    results = Results(out)
    if args.images is not None:
        dataset = None
        if args.config:
            dataset = make_dataset(read_config(args.config, args.overrides))
        found = open_images(args.images, dataset)
        given = image_sets.from_source("images", found, args.num, path=args.images)
        return _score_samples(args, of_samples, [given], dataset, results)
    given = sweep.values(args.sweep or (), sweep.WEIGHTS)
    weights = [arguments.weights(text) for text in given] or [args.weights]
    opened = [arguments.trained(args, each) for each in weights]
    scores = []
    if of_samples:
        sets = [*_sets(args, opened)]
        scores += _score_samples(args, of_samples, sets, opened[0].dataset, results)
    for trained, name in itertools.product(opened if of_model else (), of_model):
        model = trained.model()
        params = devices.replicate(trained.load_params(model))
        variance, tolerance = args.variance or trained.variance, args.tolerance or 1e-5
        estimator = sweep.estimator_of(name, model, variance, tolerance)
        num = args.num or NUM_IMAGES
        scores.append(
            sweep.score_model(
                estimator,
                trained,
                model,
                params,
                args.split,
                num,
                args.seed,
                results,
                args.batch_size,
            )
        )
    return scores


def _check(args, of_samples, of_model):
    if args.num is not None and args.num < 2 or args.batch_size < 1:
        raise ConfigError("--num must be at least 2, and --batch_size at least 1")
    if args.tolerance is not None and not 0 < args.tolerance < 1:
        raise ConfigError("--tolerance must lie between 0 and 1")
    draws = of_samples and args.images is None
    for flag in (sweep.WEIGHTS, sweep.GUIDANCE):
        if sweep.values(args.sweep or (), flag) and getattr(args, flag) is not None:
            raise ConfigError(f"--sweep {flag} says what --{flag} does: give one")
    for name, used in (
        ("tolerance", "ode_bpd" in of_model),
        ("split", of_model),
        ("config", args.images is not None),
        ("features", of_samples),
        ("held_out", "memorisation" in of_samples),
        ("sweep", draws),
        ("sampler", draws and not args.sweep),
        ("steps", draws and not args.sweep),
        ("variance", draws or "bpd" in of_model),
        *((each, draws) for each in ("labels", "guidance_scale", "timesteps", "eta")),
    ):
        if getattr(args, name) is not None and not used:
            raise ConfigError(f"--{name} would have no effect here: leave it out")
    if args.images is not None and of_model:
        raise ConfigError(f"{of_model[0]} is of a model, not of --images")


def _score_samples(args, names, sets, dataset, results):
    """Scores of sets of images by their features."""
    metrics = [name for name in names if name in METRICS]
    chosen = measures.network_of(metrics, args.features)
    if args.reference and not any(METRICS[name].reads for name in metrics):
        raise ConfigError(f"{args.metrics}: --reference would have no effect here")
    extractor = arguments.extractor(args, chosen, dataset)
    reference = args.reference or "train"
    size, held_out = args.batch_size, args.held_out
    return sweep.score_samples(
        names, sets, extractor, dataset, results, size, reference, held_out
    )


def _sets(args, opened):
    """Yields the images of each row of a sweep, of one model with several weights."""
    num, classes = args.num or NUM_SAMPLES, args.labels or "all in turn"
    for trained in opened:
        params = None
        for row in sweep.rows(trained, args.sweep or (), arguments.sampling(args)):
            if row.model is not None:
                if params is None:
                    params = devices.replicate(trained.load_params(row.model))
                labels = arguments.labels(args, row.model.num_classes, num)
                yield sweep.images_of(
                    row, trained, params, num, args.seed, labels, classes
                )
            elif trained is opened[0]:
                split = row.name.removeprefix("data:")
                yield references.from_split(trained.dataset, split, args.num)


def main(args: argparse.Namespace) -> None:
    """Scores, prints, writes and draws."""
    out = Path(args.out or Path(args.workdir or ".", "evaluation.json"))
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: give the name of a file")
    with command.resumable():
        scores = evaluate(args, out)
    if jax.process_index():
        return
    print(report.table(scores))
    for name in {s.protocol["features"]["name"] for s in scores if s.of_features}:
        print(f"of the features {name}")
    print(readable(f"the protocol of each number is in {out}"))
    calls = {score.network_calls for score in scores} - {None}
    if len(calls) > 1:
        plots.plot(out.with_suffix(".png"), scores)
        print(readable(f"drawn in {out.with_suffix('.png')}"))


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
