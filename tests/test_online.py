"""Scores while training, and the best checkpoint."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from tiny import call, fit, plain

import ddpm_jax
from ddpm_jax import evaluate
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import online, report
from ddpm_jax.experiment import config
from ddpm_jax.experiment import run as runs
from ddpm_jax.metrics.by_name import Value
from ddpm_jax.metrics.features import classifier


@pytest.fixture(autouse=True)
def quick_feature_network(monkeypatch):
    few = functools.partial(classifier.fit, num_steps=4)
    monkeypatch.setattr(classifier, "fit", few)
    recipe = {**classifier.RECIPE, "version": "of test_progress"}
    monkeypatch.setattr(classifier, "RECIPE", recipe)


def scored(tmp_path, metric):
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line[metric] for line in lines if metric in line}


@pytest.mark.parametrize("metric", ["fd", "accuracy"])
def test_scores_are_those_of_evaluate(tmp_path, metric):
    settings = plain(
        f"evaluation={{'every': 2, 'metric': '{metric}', 'num': 20, 'batch_size': 8}}",
        "train={'num_steps': 4, 'save_every': 9, 'sample_every': 0, 'keep': 9}",
    )
    assert fit(settings, tmp_path / "run") == 0
    found = scored(tmp_path, metric)
    assert [*found] == [2, 4]
    out = tmp_path / "scores.json"
    given = ["--workdir", tmp_path / "run", "--step", 2, "--num", 20]
    call(evaluate, *given, "--metrics", metric, "--out", out)
    np.testing.assert_allclose(
        report.load(out)[-1].value, found[2], rtol=1e-4, atol=1e-6
    )


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path, monkeypatch):
    """Of steps 1 to 6, with the latest alone beside it; also over an interruption."""
    scores = iter([5.0, 1.0, 3.0, math.nan, 2.0, 4.0])
    seen = []

    def make_scorer(experiment):
        def score(params):
            seen.append(jax.device_get(params))  # they are donated to the next step
            return Value(next(scores), None, ("few samples",))

        return score

    monkeypatch.setattr(online, "make_scorer", make_scorer)
    options = "train={'num_steps': %d, 'save_every': 1, 'sample_every': 0, 'keep': 1}"
    for num_steps in (4, 6):
        settings = plain(options % num_steps, "evaluation.every=1")
        assert fit(settings, tmp_path / "run") == 0
    steps = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == [2, 6] and runs.find_step(tmp_path / "run", "best") == 2
    best = ddpm_jax.load(tmp_path / "run", step="best").params
    for x, y in zip(jax.tree.leaves(best), jax.tree.leaves(seen[1]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("change", [
    "evaluation.metric=accuracy", "evaluation.num=30", "timesteps.num_steps=4"
])  # fmt: skip
def test_scores_that_would_not_compare_are_refused(tmp_path, monkeypatch, change):
    monkeypatch.setattr(online, "make_scorer", lambda *given: lambda x: Value(1.0))
    longer = "train={'num_steps': 4, 'save_every': 1, 'sample_every': 0}"
    assert fit(plain(), tmp_path / "run") == 0
    settings = plain("evaluation.every=1", longer)
    assert fit(settings, tmp_path / "run") == 0  # scores may begin on the way
    with pytest.raises(ConfigError, match="holds a run of another config"):
        fit(config.override(settings, [change]), tmp_path / "run")


def test_there_may_be_no_best(tmp_path):
    settings = plain()
    assert fit(settings, tmp_path / "run") == 0
    with pytest.raises(ConfigError, match="no checkpoint with a score in .* steps"):
        runs.find_step(tmp_path / "run", "best")


MISTAKES = {
    "evaluation.metric=fidd": "unknown metric 'fidd'; did you mean 'fid'",
    "evaluation.evry=3": "did you mean 'every'",
    "evaluation.every=-1": "every must be 0 or more",
    "evaluation.num=1": "num must be 2 or more",
    "evaluation.num=2.5": "num must be",
    "evaluation={'every': 1, 'metric': 'accuracy', 'num': 2.5}": "num must be",
    "evaluation.convention=ft": "unknown convention 'ft'",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes_are_named_before_anything_is_written(tmp_path, change):
    settings = plain("evaluation={'every': 1, 'metric': 'fid'}", change)
    with pytest.raises(ConfigError, match=MISTAKES[change]):
        fit(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_classes_has_no_accuracy(tmp_path):
    settings = plain("evaluation={'every': 1, 'metric': 'accuracy'}")
    settings["network"] |= {"num_classes": 0, "label_dropout": 0.0}
    with pytest.raises(ConfigError, match="no classes asked for"):
        fit(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_without_classes_have_no_feature_network(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((64, 8, 8, 1), np.uint8))
    settings = plain(
        f"data={{'name': 'arrays', 'path': '{tmp_path}/a.npz', 'batch_size': 16}}",
        "network.num_classes=0",
        "evaluation={'every': 1}",
    )
    with pytest.raises(ConfigError, match="no classes to train a feature network on"):
        fit(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
