"""Timesteps: the authors' and diffusers' lists, shifted to count clean data as 0."""

import numpy as np
import pytest

from ddpm_jax.diffusion import schedules, timesteps

GOLDEN = np.load("tests/data/schedulers.npz")
TRAJECTORIES = np.load("tests/data/trajectories.npz")
SCHEDULE = schedules.linear()
SPACINGS = ["leading", "trailing", "linspace"]
ROUNDED = ["quadratic", "log_snr_uniform", "karras"]


@pytest.mark.parametrize("key", [k for k in GOLDEN.files if k.endswith("/off0")])
def test_diffusers_lists(key):
    _, spacing, num_steps, _ = key.split("/")
    ours = getattr(timesteps, spacing)(SCHEDULE, int(num_steps))
    np.testing.assert_array_equal(ours[:-1] - 1, GOLDEN[key])
    assert ours[-1] == 0


@pytest.mark.parametrize("num_times", [1, 2, 7, 1000, 5000])
@pytest.mark.parametrize("spacing", [*SPACINGS, *ROUNDED])
def test_decreasing_from_at_most_T_to_0(spacing, num_times):
    schedule = schedules.constant(num_times, 5 / (num_times + 9))
    for num_steps in {1, (num_times + 1) // 2, num_times}:
        times = getattr(timesteps, spacing)(schedule, num_steps)
        assert times[-1] == 0 and 1 <= times[0] <= num_times
        assert np.all(np.diff(times) < 0)
        if spacing in SPACINGS:
            assert len(times) == num_steps + 1
        if spacing not in ("leading", "quadratic", "karras"):
            assert times[0] == num_times


def test_all_times_are_the_ancestral_sampler_of_ho_et_al():
    for spacing in SPACINGS:
        times = getattr(timesteps, spacing)(SCHEDULE, 1000)
        np.testing.assert_array_equal(times, np.arange(1000, -1, -1))


def test_quadratic_is_song_et_al():
    """int(linspace(0, sqrt(0.8 T), S)^2), each time once."""
    expected = {int(r * r) for r in np.linspace(0, np.sqrt(800), 20)}
    times = timesteps.quadratic(SCHEDULE, 20)
    assert set((times[:-1] - 1).tolist()) == expected


def test_custom():
    times = timesteps.custom(SCHEDULE, [901, 400, 3])
    np.testing.assert_array_equal(times, [901, 400, 3, 0])
    np.testing.assert_array_equal(
        timesteps.custom(schedules.linear(10), [10, 0]), [10, 0]
    )
    unsigned = timesteps.custom(SCHEDULE, np.array([9, 2], np.uint8))
    np.testing.assert_array_equal(unsigned, [9, 2, 0])
    for bad in ([], [3, 3], [1, 2], [1001], [2, -1], [0.5], [0], 5):
        with pytest.raises(ValueError, match="times must"):
            timesteps.custom(SCHEDULE, bad)


@pytest.mark.parametrize("spacing", [*SPACINGS, *ROUNDED])
def test_more_steps_than_times(spacing):
    for num_steps in (0, 11):
        with pytest.raises(ValueError, match="1 ... 10"):
            getattr(timesteps, spacing)(schedules.linear(10), num_steps)


def test_even_in_the_log_snr():
    """Each time is the nearest to its level, and the levels are even."""
    times, table = timesteps.log_snr_uniform(SCHEDULE, 12), SCHEDULE.log_snr
    assert len(times) == 13 and times[0] == 1000 and times[-2] == 1
    levels = np.linspace(table[1000], table[1], 12)
    for t, level in zip(times[:-1], levels, strict=True):
        assert np.argmin(np.abs(table[1:] - level)) + 1 == t


def test_karras_et_al():
    """Eq. 5 of their paper, from the noise level of T to that of t = 1."""
    schedule = schedules.linear()
    levels = np.exp(-schedule.log_snr[1:] / 2)
    first, last = levels[-1], levels[0]
    for rho in (3.0, 7.0):
        i = np.arange(10)
        root = first ** (1 / rho) + i / 9 * (last ** (1 / rho) - first ** (1 / rho))
        times = timesteps.karras(schedule, 10, rho, 1e9, 1e-9)
        assert len(times) == 11
        nearest = np.abs(np.log(levels) - rho * np.log(root)[:, None]).argmin(axis=1)
        np.testing.assert_array_equal(times[:-1], nearest + 1)
    with pytest.raises(ValueError, match="rho must be positive"):
        timesteps.karras(schedule, 10, 0.0)
    assert np.argmin(np.abs(levels - 80)) + 1 == timesteps.karras(schedule, 10)[0]


@pytest.mark.parametrize("spacing", ["log_snr_uniform", "karras"])
def test_zero_terminal_snr_is_visited(spacing):
    schedule = schedules.zero_terminal_snr(schedules.linear())
    limits = {"sigma_max": 1e9} if spacing == "karras" else {}
    times = getattr(timesteps, spacing)(schedule, 8, **limits)
    assert times[0] == 1000 and times[-2] == 1 and len(times) == 9


def test_from_time():
    times = timesteps.trailing(SCHEDULE, 10)
    np.testing.assert_array_equal(timesteps.from_time(times, 200), [200, 100, 0])
    np.testing.assert_array_equal(timesteps.from_time(times, 250), [250, 200, 100, 0])
    np.testing.assert_array_equal(timesteps.from_time(times, 1), [1, 0])
    for t in (0, -5):
        with pytest.raises(ValueError, match=f"at time 1 or later, not at {t}"):
            timesteps.from_time(times, t)


@pytest.mark.parametrize("num_steps, length, repeats", [(20, 5, 3), (50, 10, 10)])
def test_resampled_is_repaint(num_steps, length, repeats):
    """The authors' walk; they list each place passed on the way up, we the top one."""
    golden = TRAJECTORIES[f"repaint/jumps/{num_steps}_{length}_{repeats}"]
    rises = np.diff(golden) > 0
    passed = 1 + np.flatnonzero(rises[:-1] & rises[1:])
    expected = np.delete(golden, passed)
    plain = timesteps.leading(SCHEDULE, num_steps)
    ours = timesteps.resampled(plain, length, repeats)
    assert ours[-1] == 0
    np.testing.assert_array_equal(ours[:-1] - 1, expected)
    np.testing.assert_array_equal(timesteps.resampled(plain, length, 1), plain)
