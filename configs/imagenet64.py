"""ImageNet at 64x64 with a learned variance: Improved DDPM (Nichol & Dhariwal 2021).

  python -m ddpm_jax.train --config configs/imagenet64.py:unconditional
  python -m ddpm_jax.train --config configs/imagenet64.py:conditional

The recipe of iddpm_cifar.py, without dropout and with their smaller network for 64x64,
121,063,942 parameters (their "100M"), or their larger one with classes, 273,049,350
(their "270M"). The hyperparameters are those of the commands in their README. Those of
the conditional model leave times as they are, 0 ... 3999, and do not rescale the bound:
the hybrid loss adds 1 / 4000 of it there, and 1 / 1000 otherwise. Their model of the
bound alone draws times by importance, which is not here.

The data set `imagenet_resized/64x64` of tensorflow-datasets (a download of 14 GB) needs
TensorFlow once, to be prepared; the message of a first run gives the command. These are
the images of Chrabaszcz et al. (2017): whole pictures squeezed to a square by a box
filter. Nichol & Dhariwal halved theirs by a box filter while that was possible, resized
the shorter side to 64 by a bicubic one and cut out the centre square. Numbers compare
only where the images of the reference were made as those of the training.

Cost and results, by their paper:

  unconditional  1.5M steps of batch 128     3.57 bits/dim, FID 19.2, 4000 steps
  conditional    250,000 steps of batch 2048  FID 2.92, 250 steps (--steps 250)

which is 43 and 257 EFLOP. What a device needs for it is told by --plan, as in

  python -m ddpm_jax.train --config configs/imagenet64.py:conditional --plan 64

The conditional recipe keeps about 0.8 GB for each image of a device, so on 8 devices
--config.network.remat=True (then 0.2 GB) or --config.train.num_microbatches=8.
"""

import runpy
from pathlib import Path

VARIANTS = ("unconditional", "conditional")


def get_config(variant):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    iddpm = Path(__file__).with_name("iddpm_cifar.py")
    config = runpy.run_path(str(iddpm))["get_config"]()
    config["image_shape"] = (64, 64, 3)
    config["network"] |= dict(channel_mults=(1, 2, 3, 4), dropout=0.0)
    config["data"] |= dict(dataset="imagenet_resized/64x64")
    config["train"] |= dict(num_steps=1_500_000)
    if variant == "conditional":
        config["network"] |= dict(channels=192, num_classes=1000, index_scale=1.0)
        config["loss"] |= dict(vlb_weight=1 / 4000)
        config["optimizer"] |= dict(learning_rate=3e-4)
        config["data"] |= dict(batch_size=2048)
        config["train"] |= dict(num_steps=250_000)
    return config
