"""A run of random weights to be scored, and the numbers in files of scores."""

from tiny import plain, random_params

from ddpm_jax.evaluation import report
from ddpm_jax.experiment import run as runs
from ddpm_jax.experiment.build import build

PIXELS = ("--features", "pixels", "--metrics", "fd,kid,pr,dc", "--batch_size", 2)


def write_run(tmp_path_factory, settings=None):
    """A run that was not trained: a fixture of modules of tests."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    settings = settings or plain()
    runs.write(folder, settings, random_params(build(settings)))
    return folder


def values(path, subject=None):
    """The numbers in a file of scores, by metric."""
    found = report.load(path)
    return {s.metric: s.value for s in found if subject in (None, s.subject)}
