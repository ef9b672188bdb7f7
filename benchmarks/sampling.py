"""What a sampler costs: compiling and memory do not depend on the number of steps.

  python benchmarks/sampling.py

The U-Net of configs/digits.py with random parameters, 64 images; sizes are what the
compiler says of the program's temporary memory.
"""

import argparse
import time

import jax
import numpy as np

from ddpm_jax.diffusion import samplers, timesteps
from ddpm_jax.diffusion.samplers import loop
from ddpm_jax.experiment import config
from ddpm_jax.experiment.model import build_model
from ddpm_jax.sampling.draw import sample_keys, sample_labels

NAMES = ("ddpm", "ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "plms", "heun")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--num", type=int, default=64, help="images (default: 64)")
    args = parser.parse_args()
    run = build_model(config.read_config(args.config))
    params = run.network.init(jax.random.key(0), run.image_shape)
    keys = sample_keys(0, args.num)
    labels = sample_labels(run.num_classes, args.num)
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{'sampler':10} {'steps':>5} {'compiling':>10} {'memory':>9} {'a step':>9}")
    for name in NAMES:
        for num_steps in (10, 100, 1000):
            sample_fn = loop.make_sample_fn(
                run.network.apply,
                run.schedule,
                getattr(samplers, name)(run.schedule),
                timesteps.trailing(run.schedule, num_steps),
                run.image_shape,
                run.predicts,
            )
            start = time.perf_counter()
            program = jax.jit(sample_fn).lower(params, keys, labels).compile()
            compiling = time.perf_counter() - start
            memory = program.memory_analysis().temp_size_in_bytes
            times = []
            for _ in range(3 if num_steps < 1000 else 1):
                start = time.perf_counter()
                jax.block_until_ready(program(params, keys, labels))
                times.append((time.perf_counter() - start) / num_steps)
            print(
                f"{name:10} {num_steps:5} {compiling:8.2f} s {memory / 2**20:6.1f} MB"
                f" {1e3 * np.median(times):6.1f} ms"
            )


if __name__ == "__main__":
    main()
