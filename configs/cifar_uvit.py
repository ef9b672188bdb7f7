"""CIFAR-10 by U-ViT-S/2 (Bao et al. 2023): a transformer with the skips of a U-Net.

  python -m ddpm_jax.train --config configs/cifar_uvit.py

Their hyper-parameters: patches of 2x2 pixels, 13 blocks of 512 features, 44,255,328
parameters without classes, AdamW at 2e-4 after a ramp of 2,500 steps, with betas 0.99
and 0.999 and a weight decay of 0.03, flips. Their chain is continuous, with betas from
0.1 to 20 over time 1; in a thousand steps it is the linear schedule.

Cost: 500,000 steps of batch 128, 4.8 EFLOP. Result: FID 3.11 with 1000 steps of the
reverse SDE:

  python -m ddpm_jax.evaluate --workdir runs/cifar_uvit --metrics fid --num 50000 \\
      --sampler reverse_sde --steps 1000
"""


def get_config():
    return dict(
        seed=0,
        image_shape=(32, 32, 3),
        schedule=dict(name="linear", num_steps=1000),
        network=dict(name="uvit", patch_size=2, depth=12, channels=512, num_heads=8),
        loss=dict(name="simple", predicts="eps"),
        optimizer=dict(
            name="adamw",
            learning_rate=2e-4,
            warmup_steps=2500,
            b1=0.99,
            b2=0.999,
            weight_decay=0.03,
            clip_norm=None,
        ),
        denoiser=dict(clip=True),
        sampler=dict(name="ddim", eta=0.0),
        timesteps=dict(name="trailing", num_steps=100),
        data=dict(
            name="tfds", dataset="cifar10", split="train", batch_size=128, flip=True
        ),
        train=dict(
            num_steps=500_000,
            ema_decay=0.9999,
            log_every=100,
            save_every=5000,
            sample_every=5000,
            num_samples=64,
        ),
    )
