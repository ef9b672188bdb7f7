"""What comes after a step: checkpoints, pictures, scores, and what is not finite."""

import contextlib
import gzip
import json
import re
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jobs import final_state, small
from tiny import fit, plain

from ddpm_jax import train
from ddpm_jax.training import loop
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.meter import DivergedError


def test_a_step_is_saved_before_its_picture_is_drawn(tmp_path, monkeypatch):
    def killed(*given):
        raise SystemExit

    monkeypatch.setattr(train.online.images, "save_png", killed)
    with pytest.raises(SystemExit):
        fit(small("train.sample_every=2"), tmp_path)
    assert int(final_state(tmp_path).step) == 2


@pytest.mark.parametrize("processes, goes_on", [(1, True), (2, False)])
def test_a_defect_beside_training_is_named(monkeypatch, processes, goes_on):
    """Of several processes, only what fails on all of them may be passed over."""
    said = Mock()
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    expected = contextlib.nullcontext() if goes_on else pytest.raises(KeyError)
    with expected, loop._late("picture", 3, said):
        raise KeyError("a defect")
    if goes_on:
        (line,) = said.line.call_args.args
        assert line.startswith("no picture of step 3 (KeyError: 'a defect'); training")
    with loop._late("picture", 3, said):
        raise OSError("no room")


def test_pictures_scores_and_records_that_fail_end_no_training(
    tmp_path, monkeypatch, capsys
):
    def scorer(*given):
        def score(params):
            raise ValueError("features are not finite")

        return score

    monkeypatch.setattr(train.online, "make_scorer", scorer)
    (tmp_path / "samples").write_text("in the way")
    full = OSError(28, "No space left on device", "metrics.jsonl")
    monkeypatch.setattr(train.Journal, "metrics", Mock(side_effect=full))
    settings = small("train.sample_every=2", "evaluation.every=2", "train.log_every=2")
    assert fit(settings, tmp_path) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "goes on" in line]
    for what, why in (
        ("record", "metrics.jsonl: No space left"),
        ("picture", "samples: File exists"),
        ("score", "features are not finite"),
    ):
        lines = [line for line in said if line.startswith(f"no {what} of step")]
        assert lines and all(why in line for line in lines), said
    assert int(final_state(tmp_path).step) == settings["train"]["num_steps"]


# What is not finite.


DIVERGING = (
    "optimizer.learning_rate=1e30",
    "optimizer.warmup_steps=0",
    "optimizer.clip_norm=None",
)


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path):
    """Nothing of it reaches a checkpoint."""
    settings = small(*DIVERGING, "train.save_every=1")
    message = r"(nan|inf) at step 2; the last checkpoint is of step 1: run again"
    with pytest.raises(DivergedError, match=message):
        fit(settings, tmp_path)
    assert int(final_state(tmp_path).step) == 1


def test_a_bounded_number_of_such_steps_may_change_nothing(tmp_path, capsys):
    settings = small(*DIVERGING, "train.save_every=1", "train.max_skipped=2")
    with pytest.raises(
        DivergedError, match=r"at step 4, after 2 skipped; .* of step 3"
    ):
        fit(settings, tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"step 2 changed nothing: .* is (nan|inf) \(1 of at most 2", said)
    assert re.search(r"step 3 changed nothing: .* is (nan|inf) \(2 of at most 2", said)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        like = final_state(tmp_path)
        one, three = checkpoints.restore(like, 1), checkpoints.restore(like, 3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
        counts = np.issubdtype(a.dtype, np.integer)  # of steps: the learning rate's
        np.testing.assert_array_equal(a + 2 if counts else a, b)


@pytest.mark.parametrize("num_steps, traced", [(9, 2), (4, 1), (3, 0)])
def test_a_trace_of_some_steps(tmp_path, capsys, num_steps, traced):
    """Also where training ends before it does."""
    settings = plain(f"train.num_steps={num_steps}", "train.profile=2")
    assert fit(settings, tmp_path) == 0
    said = capsys.readouterr().out
    found = [*tmp_path.glob("plugins/profile/*/*.xplane.pb")]
    assert len(found) == bool(traced)
    assert f"a trace of {traced} steps is in" in said or not traced
    for path in found:  # the steps are marked in it
        path = path.with_name(path.name.replace(".xplane.pb", ".trace.json.gz"))
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert [each.get("name") for each in events].count("train") == traced
    assert fit(plain(f"train.num_steps={num_steps}"), tmp_path) == 0


def test_a_trace_that_cannot_be_written_ends_no_training(tmp_path, capsys):
    (tmp_path / "plugins").touch()
    assert fit(plain("train.num_steps=9", "train.profile=2"), tmp_path) == 0
    said = capsys.readouterr().out
    assert "done: step 9" in said and "no trace is written: FAILED_PREC" in said
