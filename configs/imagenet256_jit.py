"""ImageNet at 256x256 by "Just image Transformers" (Li & He 2025), no autoencoder.

  python -m ddpm_jax.train --config configs/imagenet256_jit.py:B16
  python -m ddpm_jax.train --config configs/imagenet256_jit.py:L16

A plain transformer on patches of 16x16 pixels that predicts the clean image, trained by
the error of the velocity, at noise levels that are logit-normal in flow time. The data
are ImageNet's folder `train`, whose 1000 sub-folders are the classes, at `data.path`;
images are cut to the centre square and mirrored at random. The learning rate, 5e-5 for
256 images, rises over 5 epochs and stays. Three averages are kept; which is best, and
at which guidance, changes with the length of the training: look at both together
(docs/averages.md).

Cost and results, FID of 50,000 samples, 50 for each class, against the training images,
by 50 steps of Heun (99 calls) with guidance between flow times 0.1 and 1:

        parameters    200 epochs, 250,000 steps of 1024    600 epochs    guidance
  B16   131M          FID 4.37, 40 EFLOP                   3.66          2.9
  L16   459M          FID 2.79, 138 EFLOP                  2.36          2.4

600 epochs are --config.train.num_steps=750600. The code behind these numbers stops
short of the clean image in its last steps, and so does this recipe (`sampler.t_eps`).
"""

VARIANTS = {"B16": ("B", 2.9), "L16": ("L", 2.4)}


def get_config(variant):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    size, guidance_scale = VARIANTS[variant]
    averages = {
        f"decay_{d}": dict(name="constant", decay=d / 1e4) for d in (9996, 9998)
    }
    return dict(
        seed=0,
        image_shape=(256, 256, 3),
        schedule=dict(name="flow", num_steps=1000),
        network=dict(
            name="jit",
            size=size,
            patch_size=16,
            num_classes=1000,
            label_dropout=0.1,
            dtype="bfloat16",
        ),
        loss=dict(
            name="simple",
            predicts="x_0",
            density="jit",
            weighting=dict(name="flow", largest=400.0),
        ),
        optimizer=dict(
            name="adam",
            learning_rate=2e-4,
            warmup_steps=6255,
            b1=0.9,
            b2=0.95,
            clip_norm=None,
        ),
        denoiser=dict(
            clip=False,
            guidance_scale=guidance_scale,
            guidance_interval=(0.0, 8.99),  # below 9, flow time is above 0.1
        ),
        sampler=dict(name="heun_flow", t_eps=0.05),
        timesteps=dict(name="flow", num_steps=50),
        data=dict(name="folder", path="imagenet/train", batch_size=1024, flip=True),
        train=dict(
            num_steps=250_200,
            ema_decay=0.9999,
            averages=averages,
            log_every=100,
            save_every=5000,
            sample_every=5000,
            num_samples=64,
        ),
    )
