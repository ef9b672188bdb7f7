"""Measures of sets of images, and the feature network that a choice of them takes."""

import pytest
from features import LABELS, OURS, PROTOCOL, THEIRS

from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import measures
from ddpm_jax.metrics.by_name import METRICS


def test_a_measure_is_its_metric():
    class subject:
        labels = LABELS

    silent = THEIRS._replace(protocol={}, num=None)
    for name, metric in METRICS.items():
        measure = measures.measure_of(name, silent)
        assert measure.names == metric.names
        assert len(measure.check(subject, PROTOCOL)) == bool(metric.reads)
        own = metric.score(OURS, silent, LABELS)
        assert measure.compute(subject, OURS) == own
        assert measure.protocol == ({"reference": {}} if metric.reads else {})


@pytest.mark.parametrize("names, given, network", [
    (["fid"], None, "inception"),
    (["is", "kid", "sfid", "fid"], None, "inception"),
    (["accuracy"], None, "classifier"),
    (["kid", "accuracy", "fd"], None, "classifier"),
    (["fd"], None, "classifier"),
    (["kid", "pr", "dc"], None, "classifier"),
    ([], None, "classifier"),
    (["kid"], "inception", "inception"),
    (["fid"], "inception", "inception"),
    (["fd", "kid"], "pixels", "pixels"),
    (["fd"], "ours.py", "ours.py"),
])  # fmt: skip
def test_the_network_of_metrics(names, given, network):
    assert measures.network_of(names, given) == network


@pytest.mark.parametrize("names, given, message", [
    (["fid", "accuracy"], None, "accuracy is of .* 'classifier', not of 'inception'"),
    (["accuracy", "is"], None, "is is of .* 'inception', not of 'classifier'"),
    (["fid"], "pixels", "fid is of .*, not of 'pixels': give --features inc"),
    (["accuracy"], "inception", "accuracy is of the features 'classifier'"),
    (["sfid"], "ours.py", "not of 'ours.py'"),
    (["fd"], "inception", "is called fid"),
    (["fid", "fd"], None, "is called fid"),
])  # fmt: skip
def test_metrics_of_another_network_are_refused(names, given, message):
    with pytest.raises(ConfigError, match=message):
        measures.network_of(names, given)
