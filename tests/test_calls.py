"""How steps are cut into calls: nothing that is done between them is passed over."""

import itertools

import jax
import pytest
from tiny import tiny

from ddpm_jax import train
from ddpm_jax.experiment import build
from ddpm_jax.training import calls


@pytest.mark.parametrize("first", [0, 3, 8, 17])
@pytest.mark.parametrize("most", [1, 4, 5])
@pytest.mark.parametrize("intervals", [(), (10, 0), (6, 4, 100)])
def test_calls_end_where_something_is_done(first, most, intervals):
    ends = [*calls.ends(first, 30, most, intervals)]
    lengths = [b - a for a, b in itertools.pairwise([first, *ends])]
    assert ends[-1] == 30 and all(1 <= length <= most for length in lengths)
    due = {
        s for every in intervals if every for s in range(first + 1, 31) if not s % every
    }
    assert due <= {*ends}
    for (a, b), end in zip(itertools.pairwise([first, *ends]), ends, strict=True):
        assert b - a == most or end in due | {30}, "no shorter than it must be"


def test_there_is_nothing_to_call_at_the_end():
    assert not [*calls.ends(30, 30, 4, (10,))]


def test_a_call_is_long_enough_for_its_host_and_short_enough_for_a_stop():
    """The CIFAR-10 recipe on eight devices, and a network of 100 times its step."""
    flops = 16 * 36.4e9
    steps = calls.steps_per_call(1315, flops)
    assert 1 < steps <= 8
    assert calls.steps_per_call(1315, 100 * flops) == 1
    assert calls.steps_per_call(1315, flops / 100) == 8


@pytest.mark.parametrize(
    "given, processes, backend, expected",
    [(None, 1, "gpu", 1), (None, 2, "cpu", 1), (None, 2, "gpu", 8), (3, 2, "cpu", 3)],
)
def test_several_processes_with_accelerators_take_several_steps_a_call(
    monkeypatch, given, processes, backend, expected
):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    settings = tiny()
    built = build.build(settings)
    built = built._replace(training=built.training._replace(steps_per_call=given))
    assert train._with_calls(built).steps_per_call == expected
