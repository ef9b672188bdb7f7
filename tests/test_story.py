"""`docs/story.md`: what it names is there, what it quotes is code, its numbers hold."""

import functools
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append("docs")

import figures
import toys
from toys import LINE, SCHEDULE

from ddpm_jax.diffusion import schedules

STORY = Path("docs/story.md").read_text()
BLOCKS = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", STORY, re.M | re.S)


def test_every_name_exists():
    names = set(re.findall(r"ddpm_jax(?:\.\w+)+", STORY.replace("\n", " ")))
    assert len(names) > 25
    for name in names:
        found = importlib.import_module("ddpm_jax")
        for part in name.split(".")[1:]:
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_every_quoted_line_is_in_its_file_in_that_order():
    assert len(BLOCKS) == STORY.count("```") // 2 > 10
    for path, quoted in BLOCKS:
        lines = Path(path).read_text().splitlines()
        left = iter([line.strip().removesuffix(",") for line in lines])
        for line in quoted.splitlines():
            assert line.strip() in left, f"{path} has no {line!r} (there)"


def test_every_figure_is_drawn_and_small():
    shown = re.findall(r"^!\[.+\]\(figures/(\w+)\.png\)$", STORY, re.M)
    assert shown == list(figures.FIGURES)
    files = sorted(Path("docs/figures").iterdir())
    assert sorted(shown) == [path.stem for path in files]
    assert all(path.stat().st_size < 150_000 for path in files)


def test_formulas_are_read_alike_by_github_and_sphinx():
    """No line of a formula looks like a list or a heading; none is cut in two."""
    text = re.sub(r"^```.*?^```$", "", STORY, flags=re.M | re.S)
    parts = re.split(r"^\$\$$", text, flags=re.M)
    for formula in parts[1::2]:
        assert not re.search(r"^\s*$|^[-+=*#>]|\\[\\,;!{]", formula.strip(), re.M)
    for prose in parts[::2]:
        assert all(line.count("$") % 2 == 0 for line in prose.splitlines())
        assert not re.search(r"\$[^$\n]*[})]_[^$\n]*\$", prose)


def test_the_chain_is_the_closed_form():
    x_0, _ = LINE.draw(5000)
    path = toys.chain(x_0)
    for t in (50, 200, 1000):
        assert LINE.distance(t, path[t - 1]) < 0.02
    alpha, _ = schedules.alpha_sigma(SCHEDULE, 1000)
    assert f"{alpha:.4f}" == "0.0064"


@pytest.mark.parametrize("eta, correlation", [(0.0, 1), (0.5, 0.87), (1.0, 0.2)])
def test_the_family_shares_its_marginals(eta, correlation):
    x_0, _, path = toys.told_walk(eta)
    for s, x in zip(toys.TOLD_TIMES[1:4], path, strict=False):
        assert LINE.distance(s, x) < 0.01
    at_t, at_s = (toys.noise_of(x_0, path[i], toys.TOLD_TIMES[i + 1]) for i in (0, 1))
    assert abs(np.corrcoef(at_t, at_s)[0, 1] - correlation) < 0.01


drawn = functools.cache(functools.partial(toys.strided, num=1000))


@pytest.mark.parametrize(
    "steps, eta, distance, by",
    [(1000, 0.0, 0.001, 0.0005), (50, 0.0, 0.02, 0.005), (10, 0.0, 0.11, 0.005)]
    + [(10, 1.0, 0.15, 0.01)],
)
def test_fewer_steps_of_the_same_denoiser(steps, eta, distance, by):
    assert abs(LINE.distance(0, drawn(steps, eta)) - distance) < by


def test_without_noise_it_is_the_map_of_quantiles():
    ends = np.ravel(drawn(1000, 0.0))
    assert np.all(np.diff(ends) > 0)
    error = ends - LINE.quantile(0, toys.middles(len(ends)))
    assert np.max(np.abs(error)) < 0.02


def test_two_recipes_care_for_the_same_levels():
    edm, flow = (toys.effort(*toys.LOSSES[i][1:]) for i in (2, 3))
    for _, _, product in (edm, flow):
        assert abs(toys.LEVELS[np.argmax(product)] + 3.4) < 0.3
    apart = [toys.LEVELS[np.argmax(p)] for p, _, _ in (edm, flow)]
    assert apart[0] - apart[1] > 2


def test_guidance_does_not_draw_the_tilted_data():
    x = np.ravel(toys.guided(3, LINE, 1, 4000))
    assert abs(np.mean(x < 0) - 0.002) < 0.001
    assert abs(np.mean(x > 0.6) - 0.67) < 0.01
    grid = np.linspace(-2.5, 2.5, 2001)
    tilt = toys.tilted(3, 1, grid)
    for part, share in ((grid < 0, 0.2), (grid > 0.6, 0.41)):
        assert abs(np.trapezoid(tilt[part], grid[part]) - share) < 0.01


def test_the_sde_and_the_ode_have_the_same_marginals():
    for path, most in zip(toys.flows(1000), (0.04, 0.002), strict=True):
        assert LINE.distance(200, path[799]) < most
        assert LINE.distance(0, path[-1]) < most


def test_the_ode_gives_the_density():
    x = np.array([-1.1, -0.5, 0.1, 1.0])
    error = toys.log_density_by_ode(x) - np.log(LINE.density(1, x))
    assert np.max(np.abs(error)) < 0.001


def test_the_bound_falls_to_the_entropy():
    assert f"{toys.entropy():.2f}" == "7.53"
    gaps = {}
    for steps, bits, draws in ((50, 9.7, 8), (250, 7.9, 2), (1000, 7.6, 1)):
        _, prior, terms = toys.bound_of_pixel(steps, draws)
        assert abs(prior + terms.sum() - bits) < 0.1
        gaps[steps] = prior + terms.sum() - toys.entropy()
    assert 3 < gaps[250] / gaps[1000] < 5
