"""CIFAR-10 by "Just image Transformers" (Li & He 2025), patches of 2x2, with classes.

  python -m ddpm_jax.train --config configs/cifar_jit.py:S2
  python -m ddpm_jax.train --config configs/cifar_jit.py:M2

The recipe of imagenet256_jit.py at batch 256, with dropout 0.1 and without guidance;
patches go through a layer of 12, as many as they have values, so nothing is narrowed.
The sizes are this project's, and no result is published for CIFAR-10: the bar for a
transformer is U-ViT-S/2 (cifar_uvit.py), FID 3.11.

        parameters
  S2     33M    4 EFLOP for 100 million images, as cifar.py's U-Net
  M2     58M    7 EFLOP
"""

import runpy
from pathlib import Path

VARIANTS = {"S2": "S", "M2": "M"}


def get_config(variant):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    larger = Path(__file__).with_name("imagenet256_jit.py")
    config = runpy.run_path(str(larger))["get_config"]("B16")
    config["image_shape"] = (32, 32, 3)
    config["network"] |= dict(
        size=VARIANTS[variant],
        patch_size=2,
        bottleneck=12,
        dropout=0.1,
        num_classes=10,
    )
    config["optimizer"] |= dict(learning_rate=2e-4, warmup_steps=5000)
    config["denoiser"] |= dict(guidance_scale=1.0, guidance_interval=None)
    config["data"] = dict(
        name="tfds", dataset="cifar10", split="train", batch_size=256, flip=True
    )
    config["train"] |= dict(num_steps=390_625, save_every=10_000, sample_every=10_000)
    return config
