"""CelebA-HQ at 256x256, unconditional (Ho et al. 2020, Appendix B).

  python -m ddpm_jax.train --config configs/celebahq256.py

tensorflow-datasets does not download CelebA-HQ: prepare `celeb_a_hq/256` by hand as its
catalogue says, in the format array_record, and give --config.data.data_dir=DIR; or use
a folder of images with configs/folder.py.

A U-Net of 113,673,219 parameters without dropout, batch 64, learning rate 2e-5, the
posterior variance. Cost: 0.5M steps; the authors made 2.2 steps a second on a TPU v3-8,
63 hours. The paper shows samples and gives no FID; a PyTorch reproduction,
tqch/ddpm-torch, reports 8.85 at 393k steps.
"""


def get_config():
    return dict(
        seed=0,
        image_shape=(256, 256, 3),
        schedule=dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=2e-2),
        network=dict(
            name="unet",
            channels=128,
            channel_mults=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attention_resolutions=(16,),
            dropout=0.0,
        ),
        loss=dict(name="simple", predicts="eps"),
        optimizer=dict(
            name="adam", learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0, eps=1e-8
        ),
        denoiser=dict(clip=True),
        sampler=dict(name="ddpm", variance="fixed_small"),
        timesteps=dict(name="trailing", num_steps=1000),
        data=dict(
            name="tfds",
            dataset="celeb_a_hq/256",
            split="train",
            batch_size=64,
            flip=True,
        ),
        train=dict(
            num_steps=500_000,
            ema_decay=0.9999,
            log_every=100,
            save_every=5000,
            sample_every=10_000,
            num_samples=16,
        ),
    )
