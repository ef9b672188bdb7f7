"""How fast a training is, beside what its devices could do at most."""

from collections.abc import Callable

import jax

from ddpm_jax.compiled.topologies import CHIPS

# Dense products of bfloat16 a second on each device, by the makers' data sheets; by the
# names that JAX gives devices, the more special first.
TPUS = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "TPU7x": "tpu7x",
}
GPUS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns operations a second that a device could do at most, None if not known.

    Args:
      device_kind: what JAX calls it, as "NVIDIA H100 80GB HBM3".
      dtype: "float32" or "bfloat16", that is computed in. A GPU multiplies float32 as
        TF32, half as fast; a TPU as bfloat16, unless it is told otherwise.
    """
    for name, chip in TPUS.items():
        if device_kind.startswith(name):
            return CHIPS[chip].flops
    for name, peak in GPUS.items():
        if name in device_kind:
            return peak / 2 if dtype == "float32" else peak
    return None


def speeds(
    batch_size: int, image_flops: int, dtype: str
) -> Callable[[float], dict[str, float]]:
    """Makes what turns the seconds of a step into what a log tells of them.

    Args:
      batch_size: images of a step, on all devices.
      image_flops: operations of a step for each image.
      dtype: that the network computes in.

    Returns:
      seconds -> "images_per_sec" and, where the peak of the devices is known, "mfu",
      the share of it (model FLOPs utilization: what is computed twice counts once).
    """
    peak = peak_flops(jax.devices()[0].device_kind, dtype)

    def of(seconds):
        rate = batch_size / seconds
        if peak is None:
            return {"images_per_sec": rate}
        mfu = rate * image_flops / (peak * jax.device_count())
        return {"images_per_sec": rate, "mfu": mfu}

    return of
