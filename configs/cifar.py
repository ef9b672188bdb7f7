"""CIFAR-10, unconditional: Denoising Diffusion Probabilistic Models (Ho et al. 2020).

  python -m ddpm_jax.train --config configs/cifar.py

The data set is downloaded once to ~/tensorflow_datasets (162 MiB), or read from a
prepared copy with --config.data.data_dir=DIR. Every number is the paper's (Appendix B)
or its code's, with one difference: the gradient is clipped after it is averaged over
devices, so that training does not depend on their number; the paper's code clips each
device's own. On one device the two are the same.

Cost: 800,000 steps took the authors 10.6 hours on a TPU v3-8. Result: FID 3.17, IS 9.46
with 1000 ancestral steps (their Table 1, from the checkpoint of lowest FID). With the
same weights, 50 steps of DDIM on quadratic times gave FID 4.67 (Song et al. 2021):

  python -m ddpm_jax.sample --workdir runs/cifar --sampler ddim --steps 50 \\
    --timesteps quadratic --out samples.png

Both are measured with (see docs/evaluation.md):

  python -m ddpm_jax.evaluate --workdir runs/cifar --metrics fid,is --num 50000
"""


def get_config():
    return dict(
        seed=0,
        image_shape=(32, 32, 3),
        schedule=dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=2e-2),
        network=dict(
            name="unet",
            channels=128,
            channel_mults=(1, 2, 2, 2),
            num_res_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
            dtype="float32",
        ),
        loss=dict(name="simple", predicts="eps"),
        optimizer=dict(
            name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0, eps=1e-8
        ),
        denoiser=dict(clip=True),
        sampler=dict(name="ddpm", variance="fixed_large"),
        timesteps=dict(name="trailing", num_steps=1000),
        data=dict(
            name="tfds", dataset="cifar10", split="train", batch_size=128, flip=True
        ),
        train=dict(
            num_steps=800_000,
            ema_decay=0.9999,
            log_every=100,
            save_every=10_000,
            sample_every=10_000,
            num_samples=64,
            keep=3,
        ),
    )
