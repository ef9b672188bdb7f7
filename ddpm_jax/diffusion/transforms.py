"""What stands between a network and a sampler, by name: guidance, then clipping."""

import math
from collections.abc import Callable, Sequence

from ddpm_jax.diffusion import denoisers
from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.guidance import GUIDANCE, guide_rescaled, within
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import unknown


def make_transform(
    schedule: Schedule,
    null: int | None,
    clip: bool = True,
    dynamic_percentile: float | None = None,
    dynamic_largest: float | None = None,
    rederive: bool = True,
    guidance: str | Callable = "cfg",
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    guidance_interval: Sequence[float | int] | None = None,
) -> Callable[[Denoiser], Denoiser]:
    """Makes what stands between the network and the sampler.

    Args:
      schedule: the noise schedule.
      null: the class that means none, None where the network has no such class.
      clip: whether the predicted x_0 is clipped to [-1, 1].
      dynamic_percentile: of dynamic thresholding (see `denoisers.threshold`), in the
        place of plain clipping.
      dynamic_largest: the most that an image is divided by then, None for no bound.
      rederive: whether eps follows the bounded x_0 (see `denoisers.clip`).
      guidance: "cfg", classifier-free guidance; or a function of the same form,
        (denoiser, scale, null) -> Denoiser.
      guidance_scale: how much of it, 1 for none.
      guidance_rescale: how much of its contrast is taken back, 0 ... 1 (see
        `guidance.guide_rescaled`).
      guidance_interval: (low, high), the noise levels sigma / alpha with guidance, or
        None for all (see `guidance.within`).

    Raises:
      ValueError: for guidance of a network without a null class, and for settings of
        what is not used.
    """
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a number, got {guidance_scale}")
    if guidance_scale != 1 and null is None:
        raise ValueError(
            "guidance_scale needs a network trained with num_classes and label_dropout"
        )
    if not callable(guidance) and guidance not in GUIDANCE:
        raise ValueError(unknown("guidance", guidance, GUIDANCE))
    if guidance != "cfg" and (guidance_rescale or guidance_scale == 1):
        raise ValueError(
            "another guidance than cfg needs a guidance_scale other than 1, and knows "
            "no guidance_rescale"
        )
    if guidance_scale == 1 and (guidance_rescale or guidance_interval):
        raise ValueError(
            "guidance_rescale and guidance_interval need a guidance_scale other than 1"
        )
    if not 0 <= guidance_rescale <= 1:
        raise ValueError(f"guidance_rescale must lie in [0, 1], got {guidance_rescale}")
    if guidance_interval is not None and len(guidance_interval) != 2:
        raise ValueError(
            "guidance_interval must be two noise levels, as in 0.2,3, got "
            f"{guidance_interval}"
        )
    if dynamic_percentile is not None and not clip:
        raise ValueError("dynamic_percentile needs clip=True")
    if dynamic_largest is not None and dynamic_percentile is None:
        raise ValueError("dynamic_largest needs a dynamic_percentile")

    def guided(denoiser):
        if guidance_rescale:
            return guide_rescaled(
                denoiser, schedule, guidance_scale, null, guidance_rescale
            )
        guide = guidance if callable(guidance) else GUIDANCE[guidance]
        return guide(denoiser, guidance_scale, null)

    def bounded(denoiser):
        if dynamic_percentile is not None:
            most = math.inf if dynamic_largest is None else dynamic_largest
            return denoisers.threshold(
                denoiser, schedule, dynamic_percentile, most, rederive
            )
        return denoisers.clip(denoiser, schedule, rederive=rederive)

    def transform(denoiser):
        plain = denoiser
        if guidance_scale != 1:
            denoiser = guided(denoiser)
        if guidance_interval:
            denoiser = within(denoiser, plain, schedule, *guidance_interval)
        return bounded(denoiser) if clip else denoiser

    transform(lambda x_t, t, cond=None: None)  # what it refuses, it refuses now
    return transform
