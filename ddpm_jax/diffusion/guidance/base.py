"""What methods of guidance share."""

from ddpm_jax.diffusion.process import Prediction


def extrapolate(weak: Prediction, strong: Prediction, scale) -> Prediction:
    """Returns weak + scale (strong - weak), with the strong one's variance."""
    x_0, eps = (w + scale * (s - w) for w, s in zip(weak[:2], strong[:2], strict=True))
    return Prediction(x_0, eps, strong.fraction)
