"""Times training and sampling beside diffusers' UNet2DModel in eager PyTorch.

  pip install -e . torch diffusers && python benchmarks/unet_step.py [WHAT ...]

The same network in float32 on both sides, of the recipes of CIFAR-10 (35.7M parameters)
and of the digits (0.7M, without classes). A step is noise, forward, backward, clipping
to norm 1, Adam, moving average, dropout 0.1; sampling is DDIM; a call is the network
alone on one image. Both are taken in turn in one process, so that other work on the
machine slows both. A turn lasts 0.3 seconds or one call, as threads of one side are
awake when the other's turn comes, and counts as its median call; times are medians of
the turns, the ratio is the median of the pairs'.
"""

import argparse
import ctypes
import time

import jax
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from tqdm import tqdm

from ddpm_jax.cli.command import tell_compilers
from ddpm_jax.experiment import build as experiment
from ddpm_jax.experiment import config
from ddpm_jax.experiment.model import complete
from ddpm_jax.interop.unet2d import export_network
from ddpm_jax.sampling.draw import sample_keys
from ddpm_jax.training.ema import Average, constant
from ddpm_jax.training.step import make_train_step

STEPS = 5  # of DDIM
TURN = 0.3  # seconds
WITHOUT_CLASSES = ("network.num_classes=0", "network.label_dropout=0.0")
SMALL = (*WITHOUT_CLASSES, "denoiser={'clip': True}", "loss.predicts=eps")
DDIM = ("sampler={'name': 'ddim', 'eta': 0.0}", f"timesteps.num_steps={STEPS}")


def build(recipe, *changes):
    """Returns our experiment and diffusers' model of the same network."""
    settings = config.read_config(f"configs/{recipe}.py", changes)
    made = experiment.build(settings)
    network = complete(settings)["network"]
    theirs = export_network(settings["image_shape"], network, 0)
    model = UNet2DModel(**{k: v for k, v in theirs.items() if k[0] != "_"})
    params = made.abstract_state().params
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(p.numel() for p in model.parameters()) == ours
    return made, model


def training(recipe, batch_size, *changes):
    """A training step of each."""
    made, model = build(recipe, *changes)
    step = jax.jit(
        make_train_step(made.loss_fn, made.tx, {"ema": Average(constant)}),
        donate_argnums=0,
    )
    key = jax.random.key(0)
    state = jax.jit(made.init)(key)
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch_size, *made.model.image_shape), np.uint8
    )
    batch = {
        "image": pixels,
        "label": np.zeros(batch_size, np.int32),
        "id": np.arange(batch_size, dtype=np.uint32),
    }

    def ours():
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    model.train()
    params = list(model.parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, 2e-4)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    x_0 = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def theirs():
        t = torch.randint(0, 1000, (batch_size,))
        a, eps = alpha_bar[t][:, None, None, None], torch.randn_like(x_0)
        output = model(a**0.5 * x_0 + (1 - a) ** 0.5 * eps, t).sample
        loss = ((output - eps) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-4)
        return loss.item()

    return ours, theirs


def sampling(recipe, batch_size, *changes):
    """Samples of each, by DDIM."""
    made, model = build(recipe, *changes, *DDIM)
    params = jax.jit(made.init)(jax.random.key(0)).params
    keys = sample_keys(0, batch_size)
    draw = jax.jit(made.model.picture_fn)
    model.eval()
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=True)
    scheduler.set_timesteps(STEPS)
    height, width, channels = made.model.image_shape

    @torch.inference_mode()
    def theirs():
        x = torch.randn(batch_size, channels, height, width)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
        return ((x + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)

    return lambda: jax.block_until_ready(draw(params, keys, None)), theirs


def call(recipe, *changes):
    """The network alone, on one image."""
    made, model = build(recipe, *changes)
    params = jax.jit(made.init)(jax.random.key(0)).params
    apply = jax.jit(made.model.network.apply)
    x, index = (
        np.zeros((1, *made.model.image_shape), np.float32),
        np.array([10], np.int32),
    )
    model.eval()
    given = torch.from_numpy(x).permute(0, 3, 1, 2), torch.tensor([10])

    @torch.inference_mode()
    def theirs():
        return model(*given).sample

    return lambda: jax.block_until_ready(apply(params, x, index)), theirs


WHAT = {
    "cifar-step": lambda: training("cifar", 8),
    "cifar-sampling": lambda: sampling("cifar", 8),
    "cifar-call": lambda: call("cifar"),
    "digits-step": lambda: training("digits", 64, *SMALL),
    "digits-sampling": lambda: sampling("digits", 64, *SMALL),
    "digits-call": lambda: call("digits", *SMALL),
}


def keep_memory():
    """Has the C library (glibc) keep memory that is free, for both sides.

    In `ddpm_jax.train`, most steps of the digits find room that is left in the process;
    here each would ask the system for its 43 MB anew, a quarter of its time.
    """
    trim_threshold, mmap_threshold = -1, -3
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**26)


def seconds(function):
    """Returns how long a call takes, in a turn of several."""
    times, end = [], time.perf_counter() + TURN
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return np.median(times)


def main():
    """Prints a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    tell_compilers()
    keep_memory()
    print(f"jax {jax.__version__}, torch {torch.__version__}")
    print("what                 ddpm_jax   diffusers   times as fast")
    for what in args.what or WHAT:
        ours, theirs = WHAT[what]()
        for _ in range(2):  # compile, and fill caches
            ours(), theirs()
        times = np.array(
            [
                (seconds(ours), seconds(theirs))
                for _ in tqdm(range(args.pairs), what, leave=False, disable=None)
            ]
        )
        a, b = 1000 * np.median(times, axis=0)
        ratio = np.median(times[:, 1] / times[:, 0])
        print(f"{what:<18}{a:>8.1f} ms {b:>8.1f} ms {ratio:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
