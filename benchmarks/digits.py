"""Reads samples of the digits model with a classifier trained on the real digits.

  python benchmarks/digits.py --workdir runs/digits

Prints how many of 1,000 class-conditional samples the classifier reads as the class
asked for, beside the real test images; how much samples of a class differ from each
other; and how far they are from the nearest training image, beside how far the test
images are: a model that copies would be much nearer.
"""

import argparse

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from ddpm_jax import experiment, runs
from ddpm_jax.data import images, sources
from ddpm_jax.data.source import gather
from ddpm_jax.training import parallel

NUM = 1000


def vectors(split):
    """Returns the real digits as vectors in [0, 1], with their labels."""
    source = sources.digits(split)
    pixels, labels = gather(source, np.arange(len(source)))
    return pixels.reshape(len(source), -1) / 255, labels


def spread(x, labels):
    """Root mean squared distance to the mean of the class."""
    means = np.stack([x[labels == c].mean(0) for c in range(10)])
    return np.sqrt(((x - means[labels]) ** 2).sum(1).mean())


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scales", default="1,2", help="guidance scales")
    args = parser.parse_args()
    train, test = vectors("train"), vectors("test")
    reader = SVC(C=10, gamma=0.03).fit(*train)
    neighbours = NearestNeighbors(n_neighbors=1).fit(train[0])

    def report(name, x, labels):
        read = np.mean(reader.predict(x) == labels)
        nearest = np.median(neighbours.kneighbors(x)[0])
        print(f"{name:<24}{read:>8.1%}{spread(x, labels):>10.2f}{nearest:>10.2f}")

    print(f"{'':<24}{'read':>8}{'spread':>10}{'nearest':>10}")
    report("real digits, test", *test)
    for scale in args.scales.split(","):
        config = runs.read_config(args.workdir)
        config["denoiser"]["guidance_scale"] = float(scale)
        config["sampler"] = {"name": "ddim", "eta": 0.0}
        config["timesteps"]["num_steps"] = args.steps
        run, params = runs.load(args.workdir, config)
        sample_fn = parallel.parallel_map(run.sample_fn, batch_size=250)
        labels = experiment.sample_labels(run.num_classes, NUM)
        drawn = sample_fn(params, experiment.sample_keys(1, NUM), labels)
        x = images.to_uint8(drawn).reshape(NUM, -1) / 255
        report(f"DDIM-{args.steps}, guidance {scale}", x, labels)


if __name__ == "__main__":
    main()
