"""Times a CIFAR-10 training step beside diffusers' UNet2DModel in eager PyTorch.

  pip install -e . torch diffusers && python benchmarks/unet_step.py

Both train the 35.7M-parameter U-Net of Ho et al. (2020) in float32, dropout 0.1: noise,
forward, backward, clipping to norm 1, Adam, moving average. Steps are taken in turn in
one process, so that other work on the machine slows both; the ratio is of medians.
"""

import argparse
import time

import jax
import numpy as np
import torch
from diffusers import UNet2DModel
from tqdm import tqdm

from ddpm_jax.diffusion import losses, schedules
from ddpm_jax.networks import unet
from ddpm_jax.training.optimizers import make_optimizer
from ddpm_jax.training.state import init_state, make_train_step


def jax_step(batch_size):
    """Returns a function that takes one step of this package and waits for it."""
    network = unet(dropout=0.1)
    tx, _ = make_optimizer("adam", 2e-4, warmup_steps=5000)
    loss_fn = losses.simple(network.apply, schedules.linear())
    step = jax.jit(make_train_step(loss_fn, tx, 0.9999), donate_argnums=0)
    key = jax.random.key(0)
    init = jax.jit(lambda key: init_state(network.init(key, (32, 32, 3)), tx))
    state = init(key)
    images = np.random.default_rng(0).uniform(-1, 1, (batch_size, 32, 32, 3))
    batch = {
        "image": images.astype(np.float32),
        "id": np.arange(batch_size, dtype=np.uint32),
    }

    def take():
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return take


def torch_step(batch_size):
    """Returns a function that takes one step of diffusers' model."""
    model = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * 2),
        up_block_types=(*["UpBlock2D"] * 2, "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        dropout=0.1,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    params = list(model.parameters())
    assert sum(p.numel() for p in params) == 35_746_307
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, 2e-4)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    x_0 = torch.rand(batch_size, 3, 32, 32) * 2 - 1

    def take():
        t = torch.randint(0, 1000, (batch_size,))
        a, eps = alpha_bar[t][:, None, None, None], torch.randn_like(x_0)
        loss = (
            (model(a**0.5 * x_0 + (1 - a) ** 0.5 * eps, t).sample - eps) ** 2
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-4)
        return loss.item()

    return take


def seconds(function):
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    """Prints both medians and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    ours, theirs = jax_step(args.batch_size), torch_step(args.batch_size)
    for _ in range(2):  # compile, and fill caches
        ours(), theirs()
    times = [
        (seconds(ours), seconds(theirs)) for _ in tqdm(range(args.steps), disable=None)
    ]
    ours, theirs = np.median(times, axis=0)
    print(f"ddpm_jax   {ours:.3f} s a step (jax {jax.__version__})")
    print(f"diffusers  {theirs:.3f} s a step (torch {torch.__version__})")
    print(f"ratio      {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
