"""ImageNet at 64x64 by "Just image Transformers" (Li & He 2025), patches of 4x4.

  python -m ddpm_jax.train --config configs/imagenet64_jit.py:S4
  python -m ddpm_jax.train --config configs/imagenet64_jit.py:B4

The recipe of imagenet256_jit.py with the data of imagenet64.py, which says how they are
had. Cost: 200 epochs, 250,000 steps of batch 1024.

        parameters
  S4     33M          11 EFLOP, a size of this project: not published
  B4    130M          40 EFLOP, FID 3.55 in the paper's Table 2

With patches as small as these every choice of what is predicted works there, x_0 no
better than others. Guidance 2.9 is that of B16, as the paper does not say.
"""

import runpy
from pathlib import Path

VARIANTS = {"S4": "S", "B4": "B"}


def get_config(variant):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    larger = Path(__file__).with_name("imagenet256_jit.py")
    config = runpy.run_path(str(larger))["get_config"]("B16")
    config["image_shape"] = (64, 64, 3)
    config["network"] |= dict(size=VARIANTS[variant], patch_size=4)
    config["data"] = dict(
        name="tfds",
        dataset="imagenet_resized/64x64",
        split="train",
        batch_size=1024,
        flip=True,
    )
    return config
