"""Times training steps of diffusers' UNet2DModel in compiled PyTorch.

The same network as a config of ours, noise, clipping to norm 1, Adam, moving average;
one fixed batch on the device, where ours reads its data. Part of accelerator.py.
"""

import time

from ddpm_jax.experiment.model import complete
from ddpm_jax.interop.unet2d import export_network


def run(settings, seconds, device):
    """Returns how fast it is, or why that was left out.

    Args:
      settings: a config; its network must have a name in diffusers.
      seconds: for how long, beside the compilation.
      device: "cuda", or where else PyTorch has it run.
    """
    try:
        import torch
        from diffusers import UNet2DModel
    except ImportError as error:
        return {"left_out": str(error)}
    if device == "cuda" and not torch.cuda.is_available():
        return {"left_out": f"torch {torch.__version__} sees no CUDA GPU"}
    network = complete(settings)["network"]
    if network["num_classes"]:
        return {"left_out": "only networks without classes are compared"}
    theirs = export_network(settings["image_shape"], network, 0)
    torch.set_float32_matmul_precision("high")  # TF32, as XLA
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    model = UNet2DModel(**{k: v for k, v in theirs.items() if k[0] != "_"})
    model = model.to(device, memory_format=torch.channels_last).train()
    params = [*model.parameters()]
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, 2e-4)
    compiled = torch.compile(model)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(device)
    batch_size = settings["data"]["batch_size"]
    height, width, channels = settings["image_shape"]
    x_0 = torch.rand(batch_size, channels, height, width, device=device) * 2 - 1
    dtype = network["dtype"]

    def step():
        t = torch.randint(0, 1000, (batch_size,), device=device)
        a, eps = alpha_bar[t][:, None, None, None], torch.randn_like(x_0)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            output = compiled(a**0.5 * x_0 + (1 - a) ** 0.5 * eps, t).sample
        loss = ((output.float() - eps) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-4)
        return loss

    try:
        for _ in range(5):  # compile, choose kernels
            step().item()
    except Exception as error:  # no compiler, no memory: PyTorch has many kinds
        return {"left_out": f"{type(error).__name__}: {str(error)[:200]}"}
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(5):
            loss = step()
        loss.item()  # waits
        steps += 5
    return {
        "torch": torch.__version__,
        "dtype": dtype,
        "batch_size": batch_size,
        "parameters": sum(p.numel() for p in params),
        "images_per_sec": steps * batch_size / (time.perf_counter() - start),
    }
