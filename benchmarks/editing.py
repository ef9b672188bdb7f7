"""Repairs, enlarges and inverts the test digits, and reads the results.

  python -m ddpm_jax.train --config configs/digits.py && python benchmarks/editing.py

The model is not told the class. A repaired digit counts as right where the classifier
of the evaluation, trained on real digits, reads it as what it was. For inversion it is
the mean squared error of pixels in [0, 1], as in Table 2 of Song et al. (2021).
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax
from ddpm_jax.data import images
from ddpm_jax.data.arrays import digits
from ddpm_jax.diffusion import (
    denoisers,
    editing,
    guidance,
    inverse,
    samplers,
    timesteps,
)
from ddpm_jax.diffusion.samplers import loop
from ddpm_jax.evaluation import extractors
from ddpm_jax.experiment import run as runs
from ddpm_jax.experiment.dataset import make_dataset


def repairs(schedule, steps):
    """The ways to paint the lower half: name -> (denoiser, known, mask) -> images."""
    times = timesteps.trailing(schedule, steps)
    ancestral = samplers.ddpm(schedule)

    def replacement(walk):
        def repair(denoiser, keys, known, mask):
            sampler = editing.inpaint(ancestral, schedule, known, mask)
            sampler = editing.resample(sampler, schedule)
            return start(sampler, denoiser, keys, known, walk)

        return repair

    def guided(guide, inner):
        def repair(denoiser, keys, known, mask):
            seen = inverse.visible(mask)
            denoiser = guide(denoiser, schedule, seen, seen.apply(known))
            return start(inner(schedule), denoiser, keys, known, times)

        return repair

    ways = {"replacement": replacement(times)}
    for length, repeats in ((5, 2), (5, 5), (5, 10), (10, 10)):
        walk = timesteps.resampled(times, length, repeats)
        ways[f"RePaint, jumps of {length}, {repeats} times"] = replacement(walk)
    for name, inner in {"ddpm": samplers.ddpm, "dpmpp_2m": samplers.dpmpp_2m}.items():
        ways[f"replace, {name}"] = guided(inverse.replace, inner)
        ways[f"guidance, {name}"] = guided(inverse.pseudoinverse_guide, inner)
        ways[f"restore, {name}"] = guided(inverse.restore, inner)
    return ways


def start(sampler, denoiser, keys, like, times):
    x_T, step_keys = loop.draw_prior(keys, like.shape[1:])
    return loop.sample(sampler, denoiser, step_keys, x_T, times)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    run = ddpm_jax.load(args.workdir)
    params = run.params
    schedule, test = run.schedule, digits("test")
    pictures = np.stack([test[i][0] for i in range(len(test))])
    labels = np.array([test[i][1] for i in range(len(test))])
    extractor = extractors.open_extractor(
        "classifier", make_dataset(runs.read_config(args.workdir))
    )

    def right(x):
        logits = extractor.apply(extractor.params, images.to_uint8(x)).logits
        return np.mean(np.argmax(logits, axis=-1) == labels)

    plain = guidance.guide(
        denoisers.from_network(run.network.apply, params, schedule, run.predicts), 0, 10
    )
    plain = denoisers.condition(plain, jnp.zeros(len(labels), jnp.int32))
    clipped = denoisers.clip(plain, schedule)
    keys = jax.random.split(jax.random.key(0), len(labels))
    known = images.to_float(pictures)
    print(f"{len(labels)} test digits, read right as they are: {right(known):.1%}")

    print(f"\nlower half painted, {args.steps} steps")
    mask = jnp.arange(8)[:, None, None] >= 4
    print(f"  {'left black':32} {right(np.where(mask, -1, known)):.1%}")
    for name, repair in repairs(schedule, args.steps).items():
        x = jax.jit(functools.partial(repair, clipped))(keys, known, mask)
        kept = np.array_equal(images.to_uint8(x)[:, :4], pictures[:, :4])
        print(
            f"  {name:32} {right(x):.1%}, known pixels {'kept' if kept else 'CHANGED'}"
        )

    for factor in (2, 4):
        print(f"\nenlarged {factor} times, {args.steps} steps")
        small = inverse.downsampled(factor)
        y = small.apply(known)
        print(f"  {'pixels repeated':32} {right(small.invert(y)):.1%}")
        for name, guide in {
            "replace": inverse.replace,
            "guidance": inverse.pseudoinverse_guide,
            "restore": inverse.restore,
        }.items():
            times = timesteps.trailing(schedule, args.steps)
            denoiser = guide(clipped, schedule, small, y)
            ancestral = samplers.ddpm(schedule)
            walk = functools.partial(start, ancestral, denoiser, times=times)
            x = jax.jit(walk)(keys, known)
            off = float(jnp.abs(small.apply(x) - y).max())
            print(f"  {name:32} {right(x):.1%}, shrunk again off by {off:.3f}")

    print("\ninversion and back, mean squared error of pixels in [0, 1]")
    for iterations, most in ((1, 1000), (3, 100)):
        for steps in (s for s in (10, 20, 50, 100, 200, 500, 1000) if s <= most):
            times = timesteps.trailing(schedule, steps)

            @jax.jit
            def there_and_back(keys, x, times=times, iterations=iterations):
                x_T = editing.encode(plain, schedule, x, times, iterations)
                ddim = samplers.ddim(schedule)
                return loop.sample(ddim, plain, keys, x_T, times)[0]

            back = there_and_back(keys, known)
            error = float(jnp.mean(((back - known) / 2) ** 2))
            print(f"  {steps:4} steps, {iterations} calls a step: {error:.2e}")


if __name__ == "__main__":
    main()
