"""Handwritten digits, 8x8, by a tiny "Just image Transformer": minutes on a CPU.

  python -m ddpm_jax.train --config configs/digits_jit.py

The images come with the package, so nothing is downloaded. Each is 16 patches of 2x2
pixels; six blocks of 128 features, 1.9M parameters, predict x_0 from them (Li & He
2025). What is learned at this size is learned as at 256x256, so it is a place to try
things; digits.py, a U-Net, is the better model of digits.
"""

import runpy
from pathlib import Path


def get_config():
    unet = Path(__file__).with_name("digits.py")
    config = runpy.run_path(str(unet))["get_config"]()
    config["schedule"] = dict(name="flow", num_steps=1000)
    config["network"] = dict(
        name="jit",
        size="S",
        patch_size=2,
        depth=6,
        channels=128,
        num_heads=4,
        bottleneck=4,
        class_tokens=4,
        class_tokens_from=2,
        dropout=0.1,
        num_classes=10,
        label_dropout=0.1,
    )
    config["loss"] = dict(
        name="simple",
        predicts="x_0",
        density="logit_normal",
        weighting=dict(name="flow", largest=400.0),
    )
    config["optimizer"] |= dict(learning_rate=1e-3)
    config["data"] |= dict(batch_size=64)
    config["denoiser"] = dict(clip=False, guidance_scale=1.0)
    config["sampler"] = dict(name="heun_flow")
    config["timesteps"] = dict(name="flow", num_steps=25)
    return config
