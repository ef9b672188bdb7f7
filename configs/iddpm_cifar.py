"""CIFAR-10 with a learned variance: Improved DDPM (Nichol & Dhariwal 2021).

  python -m ddpm_jax.train --config configs/iddpm_cifar.py

The hybrid loss on the cosine schedule of 4000 steps. The network is theirs: three
blocks a level, attention of four heads at 16x16 and 8x8, scale and shift by the time,
dropout 0.3, and the smaller differences between their code and that of Ho et al.

Cost: 500,000 steps of batch 128, on about 50M parameters. Result: 3.17 bits per
dimension and FID 3.19 with 4000 ancestral steps (their Table 2, L_hybrid):

  python -m ddpm_jax.evaluate --workdir runs/iddpm_cifar --metrics bpd --num 10000

Fewer steps need no other training, such as 100 of them:

  python -m ddpm_jax.sample --workdir runs/iddpm_cifar --steps 100
"""


def get_config():
    return dict(
        seed=0,
        image_shape=(32, 32, 3),
        schedule=dict(name="cosine", num_steps=4000),
        network=dict(
            name="unet",
            channels=128,
            channel_mults=(1, 2, 2, 2),
            num_res_blocks=3,
            attention_resolutions=(16, 8),
            num_heads=4,
            dropout=0.3,
            scale_shift=True,
            learned_variance=True,
            norm_eps=1e-5,
            symmetric_padding=True,
            cos_first=True,
            frequency_shift=0,
            index_scale=0.25,
        ),
        loss=dict(name="hybrid", predicts="eps", vlb_weight=1e-3),
        optimizer=dict(
            name="adamw", learning_rate=1e-4, weight_decay=0.0, clip_norm=None
        ),
        denoiser=dict(clip=True),
        sampler=dict(name="ddpm", variance="learned_range"),
        timesteps=dict(name="linspace", num_steps=4000),
        data=dict(
            name="tfds", dataset="cifar10", split="train", batch_size=128, flip=False
        ),
        train=dict(
            num_steps=500_000,
            ema_decay=0.9999,
            log_every=100,
            save_every=10_000,
            sample_every=50_000,
            num_samples=64,
        ),
    )
