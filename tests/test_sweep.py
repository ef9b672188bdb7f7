"""Sweeps: several samplers in one evaluation, and real images."""

import pytest
from scored import PIXELS, values, write_run
from tiny import call

from ddpm_jax import evaluate

workdir = pytest.fixture(write_run, scope="module")


def test_a_sweep(workdir, tmp_path, capsys):
    out = tmp_path / "scores.json"
    sweep = ["--sweep", "ddim:2,4", "heun@trailing:3", "data:test"]
    given = ["--workdir", workdir, "--num", 24, "--out", out, *PIXELS]
    call(evaluate, *given, *sweep)
    rows = capsys.readouterr().out.splitlines()[1:5]
    assert [row.split()[0] for row in rows] == [
        "ddim:2",
        "ddim:4",
        "heun@trailing:3",
        "data:test",
    ]
    # Heun's steps are two calls, but for the last.
    assert [row.split()[1] for row in rows[:3]] == ["2", "4", "5"]
    assert values(out, "data:test")["fd"] < values(out, "ddim:4")["fd"]
    assert (tmp_path / "scores.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.json",
        "scores.png",
    ]


def test_of_real_images_the_distance_is_zero(workdir, tmp_path):
    out = tmp_path / "scores.json"
    given = ["--workdir", workdir, *PIXELS, "--out", out]
    call(evaluate, *given, "--sweep", "data:train")
    found = values(out)
    assert found["fd"] < 1e-6 and found["precision"] == found["recall"] == 1
    assert found["coverage"] == 1
