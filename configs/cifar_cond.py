"""CIFAR-10, class-conditional, for classifier-free guidance (Ho & Salimans 2022).

  python -m ddpm_jax.train --config configs/cifar_cond.py

The recipe of cifar.py with a class embedding, a tenth of whose labels is dropped while
training, and samples of 50 DDIM steps. Sample with guidance, a class at a time:

  python -m ddpm_jax.sample --workdir runs/cifar_cond --labels 3 --guidance_scale 1.5

Cost: as cifar.py, 800,000 steps. There is no published number for just this recipe.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("cifar.py")))["get_config"]()
    config["network"] |= dict(num_classes=10, label_dropout=0.1)
    config["denoiser"] |= dict(guidance_scale=1.0)
    config["sampler"] = dict(name="ddim", eta=0.0)
    config["timesteps"] = dict(name="trailing", num_steps=50)
    return config
