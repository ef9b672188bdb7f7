"""Draws the figures of `docs/story.md`: `python docs/figures.py`, a minute on a CPU.

Each function draws one, on distributions whose denoiser is known exactly (`toys`).
"""

import io
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
import toys
from PIL import Image
from toys import LINE, PLANE, SCHEDULE

from ddpm_jax.diffusion import process, samplers, schedules, timesteps

matplotlib.use("agg")

import matplotlib.pyplot as plt

# Of Okabe & Ito (2008), told apart by colour-blind people too.
BLUE, RED, GREEN, PINK, ORANGE, SKY = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
]
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
BINS = np.linspace(-2.2, 2.2, 67)
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
}


def against(panel, x, t, title=""):
    """A histogram of points, and the curve of q(x_t)."""
    panel.hist(np.ravel(x), BINS, density=True, color=SKY, label="drawn")
    x = np.linspace(*BINS[[0, -1]], 601)
    q = LINE.density(t, x)
    panel.plot(x, q, color=RED, lw=1.3, label="q exactly")
    panel.set(title=title, xticks=(-2, 0, 2), yticks=[], xlim=x[[0, -1]])
    panel.set_ylim(0, 1.35 * q.max())


def behind(panel, last=1000):
    """The density q(x_t) for all times, as a grey picture."""
    times = np.arange(0, last + 1, 10)
    x = np.linspace(-3, 3, 241)
    picture = np.stack([LINE.density(t, x) for t in times], axis=1)
    picture = np.sqrt(picture / picture.max(axis=0))
    grid = (times[0], times[-1], x[0], x[-1])
    panel.imshow(
        picture, extent=grid, origin="lower", aspect="auto", cmap="Greys", vmax=1.6
    )
    panel.set(xlabel="t", ylabel="x")


def forward():
    """The chain step by step, and q(x_t | x_0) at once."""
    x_0, _ = LINE.draw(20000)
    path = np.asarray(toys.chain(x_0))
    figure, panels = plt.subplots(1, 4, figsize=(9.6, 2.6), width_ratios=(2, 1, 1, 1))
    behind(panels[0])
    for i, colour in enumerate((BLUE, RED, GREEN, PINK)):
        one = np.concatenate([x_0[None, i], path[:, i]])
        panels[0].plot(one, color=colour, lw=0.7)
    panels[0].set_title("four walks of the chain, on the density of all")
    for panel, t in zip(panels[1:], (50, 200, 1000), strict=True):
        against(panel, path[t - 1], t, f"after {t} steps")
    panels[1].legend(loc="upper left", fontsize=7, handlelength=1)
    return figure


def family():
    """Three processes with other paths and the same marginals."""
    figure, panels = plt.subplots(3, 4, figsize=(9.6, 5.6))
    for row, eta in zip(panels, (0.0, 0.5, 1.0), strict=True):
        x_0, _, path = toys.told_walk(eta)
        for panel, t, x in zip(row, toys.TOLD_TIMES[1:4], path, strict=False):
            against(panel, x, t, f"$\\eta$ = {eta:g}: $x_s$ at s = {t}")
        at_t, at_s = toys.noise_of(x_0, path[0], 600), toys.noise_of(x_0, path[1], 300)
        row[3].plot(at_t[::30], at_s[::30], ".", color=BLUE, ms=1.5)
        row[3].set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
        correlation = np.corrcoef(at_t, at_s)[0, 1]
        row[3].set_title(f"correlation {correlation:.2f}")
        row[3].set_ylabel("noise in $x_{300}$")
    panels[2, 3].set_xlabel("noise in $x_{600}$")
    panels[0, 0].legend(loc="upper left", fontsize=7, handlelength=1)
    return figure


def strided():
    """Fewer steps with the same denoiser."""
    figure, panels = plt.subplots(1, 4, figsize=(9.6, 2.6), width_ratios=(1, 1, 1, 1.5))
    for panel, steps in zip(panels, (1000, 50, 10), strict=False):
        against(panel, toys.strided(steps), 0, f"{steps} steps, $\\eta$ = 0")
    panels[0].legend(loc="upper left", fontsize=7, handlelength=1)
    counts = (10, 20, 50, 100, 250)
    for eta, colour, marker in ((0.0, BLUE, "o"), (0.5, GREEN, "^"), (1.0, RED, "s")):
        far = [LINE.distance(0, toys.strided(n, eta)) for n in counts]
        panels[3].loglog(
            counts, far, color=colour, marker=marker, ms=4, label=f"$\\eta$ = {eta:g}"
        )
    exact = np.mean([LINE.distance(0, LINE.draw(4000, seed)[0]) for seed in range(20)])
    panels[3].axhline(exact, color="#777777", ls="--", lw=1)
    panels[3].text(10, exact * 0.9, "4000 draws of the data", va="top", fontsize=7)
    panels[3].set(xlabel="steps", title="distance to the data")
    panels[3].set_ylim(3e-3)
    panels[3].legend(fontsize=7)
    return figure


def sigma_zero():
    """A map against random paths."""
    times = timesteps.trailing(SCHEDULE, 1000)
    denoiser = LINE.denoiser(SCHEDULE)
    begin = toys.spread_normal(15)
    same = jnp.full((15, 1), 0.7)
    calm = toys.walk(samplers.ddim(SCHEDULE), denoiser, begin, times)
    noisy = toys.walk(samplers.ddim(SCHEDULE, 1.0), denoiser, same, times)
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3), width_ratios=(1.2, 1.2, 1))
    for panel, start, path in ((panels[0], begin, calm), (panels[1], same, noisy)):
        behind(panel)
        path = np.concatenate([start[None], path])[:, :, 0]
        for i, line in enumerate(path.T):
            colour = (BLUE, RED, GREEN)[i % 3]
            panel.plot(times, line, color=colour, lw=1.1 if panel is panels[0] else 0.6)
        panel.set_xlim(1000, 0)
    panels[0].set_title("$\\eta$ = 0: 15 starts, one path from each")
    panels[1].set_title("$\\eta$ = 1: one start, 15 paths from it")
    few = timesteps.trailing(SCHEDULE, 250)
    starts = toys.spread_normal(400)
    ends = toys.walk(samplers.ddim(SCHEDULE, 1.0), denoiser, starts, few)[-1]
    panels[2].plot(starts, ends, ".", color=SKY, ms=3, label="$\\eta$ = 1")
    ends = toys.strided(1000, num=60)
    starts = toys.spread_normal(60)
    panels[2].plot(starts, ends, "o", color=BLUE, ms=3.5, label="$\\eta$ = 0")
    u = toys.middles(1000)
    panels[2].plot(
        toys.spread_normal(1000),
        LINE.quantile(0, u),
        color=RED,
        lw=1,
        label="quantiles",
    )
    panels[2].set(xlabel="$x_T$", ylabel="$x_0$", xlim=(-3, 3), title="where it ends")
    panels[2].set_ylim(-1.7, 2.3)
    panels[2].legend(fontsize=7, loc="upper left")
    return figure


def log_snr():
    """The schedules, as log-SNR and as what is left of the image."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3))
    names = ("linear", "cosine", "sigmoid", "flow", "log_snr_linear")
    colours = (BLUE, RED, GREEN, PINK, ORANGE)
    for name, colour, style in zip(names, colours, STYLES, strict=True):
        schedule = schedules.SCHEDULES[name](1000)
        t = np.arange(1001)
        alpha, _ = schedules.alpha_sigma(schedule, t)
        line = {"color": colour, "ls": style, "lw": 1.6}
        panels[0].plot(t[1:], schedule.log_snr[1:], label=name, **line)
        panels[1].plot(t, alpha, **line)
    panels[0].axhline(0, color="#CCCCCC", lw=0.8, zorder=0)
    panels[0].set(ylim=(-15, 15), xlabel="t", title="log-SNR $\\lambda_t$")
    panels[1].set(xlabel="t", title="$\\alpha_t$, what is left of the image")
    panels[0].legend(fontsize=7.5, ncols=2, loc="upper right")
    return figure


def levels():
    """Densities of noise levels, weights, and their product."""
    colours = (BLUE, RED, GREEN, PINK, ORANGE)
    figure, panels = plt.subplots(1, 3, figsize=(10.4, 3.4))
    for (name, *loss), colour, style in zip(toys.LOSSES, colours, STYLES, strict=True):
        line = {"color": colour, "ls": style, "lw": 1.5}
        p, log_w, product = toys.effort(*loss)
        panels[0].plot(toys.LEVELS, p, label=name, **line)
        panels[1].plot(toys.LEVELS, log_w / np.log(10), **line)
        panels[2].plot(toys.LEVELS, product, **line)
    panels[0].set_title("density $p(\\lambda)$")
    panels[1].set_title("weight of $x_0$'s error, $\\log_{10} w(\\lambda)$")
    panels[2].set_title("density × weight, of eps's error")
    for panel in panels:
        panel.set(xlabel="log-SNR $\\lambda$", xlim=toys.EDGES[[0, -1]])
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure


def guidance():
    """What the scale does to samples of a class, in the plane and on the line."""
    figure, panels = plt.subplots(1, 4, figsize=(10.4, 2.8))
    data, classes = PLANE.draw(3000)
    for panel, scale in zip(panels, (1, 3), strict=False):
        for label, colour in enumerate(("#C8C8C8", "#A0A0A0", "#DDDDDD")):
            points = data[classes == label]
            panel.plot(*points.T, ".", color=colour, ms=2)
        drawn = toys.guided(scale, PLANE, 0, 600, dimensions=2)
        panel.plot(*drawn.T, ".", color=BLUE, ms=2.5)
        panel.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
        panel.set_title(f"a class of three, scale {scale}")
    x = np.linspace(-2.5, 2.5, 2001)
    for panel, scale in zip(panels[2:], (1, 3), strict=True):
        drawn = toys.guided(scale, LINE, 1, 4000)
        panel.hist(np.ravel(drawn), BINS, density=True, color=SKY, label="drawn")
        panel.plot(x, LINE.density(0, x), ":", color="#777777", lw=1.2, label="all")
        panel.plot(x, toys.tilted(scale, 1, x), color=RED, lw=1.4, label="tilted data")
        panel.set(
            title=f"a class of two parts, scale {scale}", yticks=[], xlim=(-2.2, 2.2)
        )
        panel.set_ylim(0, 2.6)
    panels[2].legend(fontsize=7, loc="upper left", handlelength=1.4)
    return figure


def score():
    """The arrows along which density rises, at three levels of noise."""
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.2), sharey=True)
    side = np.linspace(-2.2, 2.2, 17)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    points, _ = PLANE.draw(1500)
    for panel, t in zip(panels, (20, 200, 500), strict=True):
        noise = toys.normal(1500, 2)
        panel.plot(*process.diffuse(SCHEDULE, points, t, noise).T, ".", color=SKY, ms=2)
        eps = PLANE.denoiser(SCHEDULE)(jnp.asarray(grid, jnp.float32), t).eps
        _, sigma = schedules.alpha_sigma(SCHEDULE, t)
        arrows = -np.asarray(eps / sigma)
        arrows /= np.sqrt(1 + np.linalg.norm(arrows, axis=1, keepdims=True))
        panel.quiver(*grid.T, *arrows.T, color="#333333", width=0.004, scale=55)
        panel.set(title=f"t = {t}, $\\sigma_t$ = {sigma:.2f}", aspect="equal")
        panel.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
    return figure


def flow():
    """The two arrive at the same marginals by other ways."""
    figure, panels = plt.subplots(2, 3, figsize=(9.6, 4.6), width_ratios=(1.7, 1, 1))
    for row, path, name in zip(
        panels, toys.flows(), ("reverse SDE", "probability flow ODE"), strict=True
    ):
        behind(row[0])
        for i, colour in zip(
            range(200, 4000, 400), (BLUE, RED, GREEN) * 4, strict=False
        ):
            row[0].plot(np.arange(999, -1, -1), path[:, i], color=colour, lw=0.7)
        row[0].set(xlim=(1000, 0), title=name)
        against(row[1], path[1000 - 200 - 1], 200, "$x_{200}$")
        against(row[2], path[-1], 0, "$x_0$")
    panels[0, 1].legend(loc="upper left", fontsize=7, handlelength=1)
    return figure


def bound():
    """Where the bits of one pixel lie, and the bound against the entropy."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3))
    counts, totals = (20, 50, 100, 250, 1000), []
    for count in counts:
        schedule, prior, steps = toys.bound_of_pixel(count, draws=-(-600 // count))
        totals.append(prior + steps.sum())
        if count == 250:
            width = schedule.log_snr[1] - schedule.log_snr[2]
            panels[0].plot(
                schedule.log_snr[:1:-1], steps[:-1] / width, color=BLUE, lw=1
            )
    panels[0].axhline(0.5 / np.log(2), color="#777777", ls=":", lw=1)
    panels[0].set(xlabel="log-SNR $\\lambda$", title="bits for each unit of $\\lambda$")
    panels[1].semilogx(counts, totals, "o-", color=BLUE, ms=4, label="bound")
    panels[1].axhline(toys.entropy(), color=RED, ls="--", label="entropy of the pixel")
    panels[1].set(xlabel="steps T", title="bits of the pixel")
    panels[1].set_xticks(counts, counts)
    panels[1].minorticks_off()
    panels[1].set_ylim(7, 16)
    panels[1].legend(fontsize=8)
    return figure


FIGURES = {
    "forward": forward,
    "family": family,
    "strided": strided,
    "sigma_zero": sigma_zero,
    "log_snr": log_snr,
    "levels": levels,
    "guidance": guidance,
    "score": score,
    "flow": flow,
    "bound": bound,
}


def main():
    """Draws all of them."""
    folder = Path(__file__).parent / "figures"
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(drawn := io.BytesIO(), format="png")
            plt.close(figure)
            picture = Image.open(drawn).convert("RGB")  # of few colours, a small file
            picture.quantize(96, dither=Image.Dither.NONE).save(
                folder / f"{name}.png", optimize=True
            )
            print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
