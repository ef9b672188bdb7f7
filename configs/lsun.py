"""LSUN at 256x256: bedroom, church or cat (Ho et al. 2020, Appendix B).

  python -m ddpm_jax.train --config configs/lsun.py:church

The data sets `lsun/bedroom`, `lsun/church_outdoor` and `lsun/cat` of
tensorflow-datasets need TensorFlow once, to be prepared (the message of a first run
gives the command); images are cut to the centre square and resized.

The recipe of celebahq256.py. Cost, and FID of 50,000 samples against the training set
in the paper (Table 3): bedroom 2.4M steps, 6.36; church 1.2M, 7.89; cat 1.8M, 19.75.
All but bedroom are mirrored at random, as the paper says.
"""

import runpy
from pathlib import Path

VARIANTS = {"bedroom": 2_400_000, "church": 1_200_000, "cat": 1_800_000}
DATASETS = {
    "bedroom": "lsun/bedroom",
    "church": "lsun/church_outdoor",
    "cat": "lsun/cat",
}


def get_config(variant):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    celebahq = Path(__file__).with_name("celebahq256.py")
    config = runpy.run_path(str(celebahq))["get_config"]()
    config["data"] |= dict(dataset=DATASETS[variant], flip=variant != "bedroom")
    config["train"] |= dict(num_steps=VARIANTS[variant])
    return config
