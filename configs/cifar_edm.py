"""CIFAR-10 as EDM trains it (Karras et al. 2022), with classes or without.

  python -m ddpm_jax.train --config configs/cifar_edm.py:unconditional
  python -m ddpm_jax.train --config configs/cifar_edm.py:conditional

Their "VP" recipe (Table 7, Appendix F): DDPM++ with 55.7M parameters behind EDM's
preconditioning, noise levels log-normal about ln(sigma) = -1.2, augmentation that does
not leak with probability 0.12 instead of flips, Adam at 1e-3 after a ramp of 10 million
images, and an average with a half-life of half a million. Two things differ: the levels
are the 10,000 of a table, even in ln(sigma) from 0.002 to 80, and gradients that are
not finite end the run (train.max_skipped) where theirs are set to 0 or 1e5.

Cost: 200 million images, 391,000 steps of batch 512, 25 EFLOP: a day at 300 TFLOP/s.
Result: FID 1.97, with classes 1.79, with 18 steps of Heun (35 calls of the network):

  python -m ddpm_jax.evaluate --workdir runs/cifar_edm --metrics fid --num 50000

Theirs is the lowest of three FIDs with different seeds; others get 2.04 to 2.08 of the
same weights. A quarter of it (--config.train.num_steps=97700) has given others 2.6.
"""

VARIANTS = ("unconditional", "conditional")


def get_config(variant):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    config = dict(
        seed=0,
        image_shape=(32, 32, 3),
        schedule=dict(name="log_snr_linear", num_steps=10_000),
        network=dict(
            name="ddpmpp",
            channels=128,
            channel_mults=(2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            dropout=0.13,
            augmentation=9,
        ),
        loss=dict(
            name="simple",
            predicts="x_0",
            density="edm",
            weighting=dict(name="edm", sigma_data=0.5),
        ),
        optimizer=dict(
            name="adam", learning_rate=1e-3, warmup_steps=19_531, clip_norm=None
        ),
        denoiser=dict(clip=False),
        sampler=dict(name="heun"),
        timesteps=dict(name="karras", num_steps=18),
        data=dict(name="tfds", dataset="cifar10", split="train", batch_size=512),
        train=dict(
            num_steps=390_625,
            ema_decay=None,
            averages=dict(ema=dict(name="half_life", images=500_000, ramp_up=0.05)),
            augmentation=0.12,
            log_every=100,
            save_every=10_000,
            sample_every=10_000,
            num_samples=64,
        ),
    )
    if variant == "conditional":
        config["network"] |= dict(num_classes=10)
    return config
