"""Samplers: one step from time t to time s, as a pair of pure functions.

| sampler | solves | order | source |
|---|---|---|---|
| `ddpm` | the ancestral chain | 1 | Ho et al. 2020 |
| `ddim` | the ODE (η = 0), the chain (η = 1) | 1 | Song et al. 2021a |
| `dpmpp_2m`, `dpmpp_3m` | the ODE (η = 0), the SDE (η = 1) | 2, 3 | Lu et al. 2022b |
| `unipc` | the ODE | 3 | Zhao et al. 2023 |
| `plms` | the ODE | 2 | Liu et al. 2022 |
| `heun` | the ODE, with churn the SDE | 2 | Karras et al. 2022 |
| `heun_flow` | the ODE, in flow time | 2 | Li & He 2025 |
| `probability_flow` | the ODE, by Euler's method | 1 | Song et al. 2021b |
| `reverse_sde` | the SDE, by Euler-Maruyama | 1 | Song et al. 2021b |

The order is that of the ODE. A step is one network call, of `heun` two.
DPM-Solver++(1) is `ddim`, and its SDE `ddim` with η = 1. A new sampler is a function of
the schedule that returns a `Sampler`, and what it remembers of earlier steps is in its
state.
"""

from ddpm_jax.diffusion.samplers.adams_bashforth import plms
from ddpm_jax.diffusion.samplers.base import Sampler, SamplerState, standard_normal
from ddpm_jax.diffusion.samplers.dpm_solver import dpmpp_2m, dpmpp_3m
from ddpm_jax.diffusion.samplers.edm import heun, heun_flow
from ddpm_jax.diffusion.samplers.first_order import ddim, ddpm
from ddpm_jax.diffusion.samplers.loop import draw_prior, make_sample_fn, sample
from ddpm_jax.diffusion.samplers.predictor_corrector import unipc
from ddpm_jax.diffusion.samplers.sde import probability_flow, reverse_sde

SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "plms": plms,
    "heun": heun,
    "heun_flow": heun_flow,
    "probability_flow": probability_flow,
    "reverse_sde": reverse_sde,
}

__all__ = [
    "SAMPLERS",
    "draw_prior",
    "make_sample_fn",
    "sample",
    "Sampler",
    "SamplerState",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_3m",
    "heun",
    "heun_flow",
    "plms",
    "probability_flow",
    "reverse_sde",
    "standard_normal",
    "unipc",
]
