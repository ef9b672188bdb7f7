"""Timesteps: the authors' and diffusers' lists, shifted to count clean data as 0."""

import numpy as np
import pytest

from ddpm_jax.diffusion import timesteps

GOLDEN = np.load("tests/data/schedulers.npz")
SPACINGS = ["leading", "trailing", "linspace"]


@pytest.mark.parametrize("key", [k for k in GOLDEN.files if k.endswith("/off0")])
def test_diffusers_lists(key):
    _, spacing, num_steps, _ = key.split("/")
    ours = getattr(timesteps, spacing)(1000, int(num_steps))
    np.testing.assert_array_equal(ours[:-1] - 1, GOLDEN[key])
    assert ours[-1] == 0


@pytest.mark.parametrize("num_times", [1, 2, 7, 1000, 5000])
@pytest.mark.parametrize("spacing", [*SPACINGS, "quadratic"])
def test_decreasing_from_at_most_T_to_0(spacing, num_times):
    for num_steps in {1, (num_times + 1) // 2, num_times}:
        times = getattr(timesteps, spacing)(num_times, num_steps)
        assert times[-1] == 0 and 1 <= times[0] <= num_times
        assert np.all(np.diff(times) < 0)
        if spacing in SPACINGS:
            assert len(times) == num_steps + 1
        if spacing in ("trailing", "linspace"):
            assert times[0] == num_times


def test_all_times_are_the_ancestral_sampler_of_ho_et_al():
    for spacing in SPACINGS:
        times = getattr(timesteps, spacing)(1000, 1000)
        np.testing.assert_array_equal(times, np.arange(1000, -1, -1))


def test_quadratic_is_song_et_al():
    """int(linspace(0, sqrt(0.8 T), S)^2), each time once."""
    expected = {int(r * r) for r in np.linspace(0, np.sqrt(800), 20)}
    times = timesteps.quadratic(1000, 20)
    assert set((times[:-1] - 1).tolist()) == expected


def test_custom():
    times = timesteps.custom(1000, [901, 400, 3])
    np.testing.assert_array_equal(times, [901, 400, 3, 0])
    np.testing.assert_array_equal(timesteps.custom(10, [10, 0]), [10, 0])
    for bad in ([], [3, 3], [1, 2], [1001], [2, -1], [0.5]):
        with pytest.raises(ValueError, match="times must"):
            timesteps.custom(1000, bad)


@pytest.mark.parametrize("spacing", [*SPACINGS, "quadratic"])
def test_more_steps_than_times(spacing):
    for num_steps in (0, 11):
        with pytest.raises(ValueError, match="1 ... 10"):
            getattr(timesteps, spacing)(10, num_steps)
