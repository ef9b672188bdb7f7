"""Your own images: a folder of files, resized and cut to 64x64.

  python -m ddpm_jax.train --config configs/folder.py --config.data.path=my_images

Images lie in the folder itself. Where they lie in sub-folders, those are classes, which
a conditional model uses with --config.network.num_classes=N (and label_dropout=0.1 for
guidance). For another size, set --config.image_shape=128,128,3: each side a multiple of
16, 2 to the number of channel_mults less one. Corrupt files are refused by name;
--config.data.on_error=skip leaves them out. Decoded images stay in memory up to
--config.data.max_memory_gb=4, larger folders in a file beside the folder; what else
there is to set is in docs/input.md.

The U-Net of Song et al. (2021) for CelebA at 64x64, 78.7M parameters, with dropout 0.1.
Watch samples/ in the run's folder; the loss says little after the first thousands of
steps.
"""


def get_config():
    return dict(
        seed=0,
        image_shape=(64, 64, 3),
        schedule=dict(name="linear", num_steps=1000),
        network=dict(
            name="unet",
            channels=128,
            channel_mults=(1, 2, 2, 2, 4),
            num_res_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
        ),
        loss=dict(name="simple", predicts="eps"),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=5000),
        denoiser=dict(clip=True),
        sampler=dict(name="ddim", eta=0.0),
        timesteps=dict(name="trailing", num_steps=50),
        data=dict(name="folder", path="images", batch_size=128, flip=True),
        train=dict(
            num_steps=500_000,
            ema_decay=0.9999,
            log_every=100,
            save_every=5000,
            sample_every=5000,
            num_samples=64,
        ),
    )
